/** Switches between tabs, by click or arrow keys. */

import { byId } from "./dom.js";

/**
 * Adds event listeners to the tabs.
 * @param {() => void} onChange called when the user chooses another tab.
 */
export function startTabs(onChange) {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const select = (chosen) => {
    if (chosen.getAttribute("aria-selected") !== "true") onChange();
    for (const tab of tabs) {
      const isChosen = tab === chosen;
      tab.setAttribute("aria-selected", isChosen);
      tab.tabIndex = isChosen ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = !isChosen;
    }
  };
  const steps = { ArrowRight: 1, ArrowLeft: -1 };
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", ({ key }) => {
      if (!steps[key]) return;
      const next = tabs.at((i + steps[key]) % tabs.length);
      select(next);
      next.focus();
    });
  });
}
