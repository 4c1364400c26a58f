// What the theme leaves out: the search's name, and the keyboard's way into what scrolls where there is no mouse. A
// button beside code is no navigation.
window.addEventListener('load', () => {
  document.querySelector('.md-search')?.setAttribute('aria-label', 'Search');
  for (const one of document.querySelectorAll('pre > code, .md-typeset__scrollwrap')) one.tabIndex = 0;
  for (const one of document.querySelectorAll('.md-code__nav')) one.role = 'none';
});
