// Runs before anything is drawn, so that the page never shows the wrong colours first.
const kept = localStorage.getItem("theme");
if (kept) document.documentElement.dataset.theme = kept;
