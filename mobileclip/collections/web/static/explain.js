// Why a picture was found: which of its places add to the score, drawn over it. Attribution, not segmentation.

const PAUSE = 250; // milliseconds, so that a pointer that passes asks for nothing
const WARM = [214, 58, 0];
const COLD = [0, 84, 190];
const STRONGEST = 150; // of 255: the picture is seen below

/** Returns a map as a canvas of a pixel a place: warm where it adds to the score, cold where it takes from it. */
function drawn(map, strongest) {
  const canvas = document.createElement('canvas');
  canvas.className = 'why';
  [canvas.width, canvas.height] = [map[0].length, map.length];
  const image = new ImageData(canvas.width, canvas.height);
  map.flat().forEach((share, place) => {
    image.data.set([...(share > 0 ? WARM : COLD), Math.round((Math.abs(share) / strongest) * STRONGEST)], 4 * place);
  });
  canvas.getContext('2d').putImageData(image, 0, 0);
  return canvas;
}

/** Puts a map over the square in the middle of a picture and of its frame; returns what its full colour is worth. */
export function lay({ map }, frame, picture) {
  const strongest = Math.max(...map.flat().map(Math.abs), Number.MIN_VALUE);
  const canvas = drawn(map, strongest);
  const { naturalWidth: width, naturalHeight: height, clientWidth, clientHeight } = picture;
  if (!width || !height) return null;
  const side = Math.min(width, height) * Math.min(clientWidth / width, clientHeight / height);
  canvas.style.width = canvas.style.height = `${side}px`;
  lift(frame);
  frame.append(canvas);
  return strongest;
}

/** Takes the map away. */
export const lift = (frame) => frame.querySelector('.why')?.remove();

/**
 * Shows the map of a picture while it is pointed at, or has the focus.
 * @param {HTMLElement} button that is pointed at.
 * @param {HTMLElement} frame around the picture.
 * @param {HTMLImageElement} picture what is in it.
 * @param {() => Promise<?object>} explain asked once; null where nothing can be said.
 */
export function watch(button, frame, picture, explain) {
  let timer = null;
  let answer;
  const show = () => {
    clearTimeout(timer);
    const mine = setTimeout(async () => {
      answer ??= await explain();
      if (answer && timer === mine) lay(answer, frame, picture);
    }, PAUSE);
    timer = mine;
  };
  const hide = () => {
    clearTimeout(timer);
    timer = null;
    lift(frame);
  };
  for (const event of ['pointerenter', 'focus']) button.addEventListener(event, show);
  for (const event of ['pointerleave', 'blur']) button.addEventListener(event, hide);
}
