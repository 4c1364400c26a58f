// Builds conditions from the columns of the index, and adds each condition to the input field of conditions.

const COMPARISONS = { number: ['>=', '<=', '=', '!=', '>', '<'], date: ['>=', '<=', '=', '!='], text: ['~', '=', '!='], tag: ['=', '!='] };
const MEANINGS = { '~': 'contains', '=': 'is', '!=': 'is not', '>=': 'at least', '<=': 'at most', '>': 'above', '<': 'below' };

const LABELS = {
  taken: 'Date', path: 'Folder', tag: 'Tag', size: 'Size (kB)', width: 'Width (pixels)', height: 'Height (pixels)',
  camera: 'Camera', latitude: 'Latitude', longitude: 'Longitude', time: 'Time in the video (seconds)', part: 'Name in the archive',
};
const ORDERED = { '>=': 'from', '<=': 'until', '=': 'on', '!=': 'not on' }; // for dates
const labelOf = (name) => LABELS[name] ?? name;

const find = (id) => document.getElementById(id);
const option = (value, text = value) => new Option(text, value);
const rounded = (number) => (Number.isInteger(number) ? number : Number(number.toFixed(3)));

/** Splits the text of the conditions field at spaces; quotation marks enclose a condition with spaces. */
export const split = (text) => (text.match(/(?:"[^"]*"|[^\s"])+/g) ?? []).map((one) => one.replaceAll('"', ''));
export const joined = (conditions) => conditions.map((one) => (/\s/.test(one) ? `"${one}"` : one)).join(' ');

/** Splits the text of the `not` field at commas. */
export const several = (text) => text.split(',').map((one) => one.trim()).filter(Boolean);

/** Returns a condition in words. */
export function condition(text) {
  const [, name, sign, value] = text.match(/^\s*(tag:[^<>=!~]+|\w+)\s*(<=|>=|!=|==|=|<|>|~)\s*(.*)$/s) ?? [];
  if (!name) return text;
  if (name === 'size' && Number(value)) return `Size ${MEANINGS[sign]} ${Number(value) < 1e6 ? `${value / 1e3} kB` : `${value / 1e6} MB`}`;
  if (name === 'tag' && sign === '=') return `Tag: ${value}`;
  return `${labelOf(name)} ${(name === 'taken' && ORDERED[sign]) || (MEANINGS[sign] ?? sign)} ${value}`;
}

/**
 * Fills the menu of columns.
 * @param {() => Promise<object[]>} columns returns the columns; called when the user first opens the conditions.
 */
export function startFilters(columns) {
  let known = [];
  const chosen = () => known.find(({ name }) => name === find('column').value);

  function show() {
    const { kind, least, most, values = [] } = chosen();
    find('comparison').replaceChildren(...COMPARISONS[kind].map((one) => option(one, kind === 'date' ? ORDERED[one] : MEANINGS[one])));
    find('values').replaceChildren(...values.map((one) => option(one)));
    find('value').value = '';
    find('value').type = kind === 'date' ? 'date' : 'text';
    const unit = chosen().name === 'size' ? 1000 : 1;
    const range = kind === 'number' ? `${rounded(least / unit)} to ${rounded(most / unit)}` : `${least?.slice(0, 10)} to ${most?.slice(0, 10)}`;
    find('value').placeholder = ['text', 'tag'].includes(kind) ? (values[0] ?? 'part of the text') : range;
  }

  function add() {
    let value = find('value').value.trim().replaceAll('"', '');
    if (!value) {
      find('value').focus();
      return;
    }
    if (find('column').value === 'size' && Number(value)) value = Math.round(Number(value) * 1000);
    const condition = `${find('column').value}${find('comparison').value}${value}`;
    find('where').value = joined([...split(find('where').value), condition]);
    find('value').value = '';
    find('ask').requestSubmit();
  }

  find('conditions').addEventListener('toggle', async () => {
    if (!find('conditions').open || known.length) return;
    known = await columns();
    find('column').replaceChildren(...known.map(({ name }) => option(name, labelOf(name))));
    find('columns').hidden = !known.length;
    if (known.length) show();
  });
  find('column').addEventListener('change', show);
  find('add').addEventListener('click', add);
  find('value').addEventListener('keydown', (event) => {
    if (event.key !== 'Enter') return;
    event.preventDefault();
    add();
  });
}
