// The theme makes a landmark of each block's copy button, which is none, and names the parts of the
// navigation by labels without a text; a wide table cannot be scrolled by the keyboard, and Markdown
// makes a header of a table's empty corner.
const mend = () => {
  for (const each of document.querySelectorAll("nav.md-code__nav:not([role])")) {
    each.setAttribute("role", "presentation");
  }
  for (const each of document.querySelectorAll("nav.md-nav[aria-labelledby]")) {
    const title = each.querySelector(":scope > .md-nav__title");
    each.setAttribute("aria-label", title.textContent.trim());
    each.removeAttribute("aria-labelledby");
  }
  for (const each of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) {
    each.setAttribute("tabindex", "0");
  }
  for (const each of document.querySelectorAll("th:empty:not([role])")) {
    each.setAttribute("role", "none");
  }
};
new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
mend();
