// Draws each plot that is shown, one after the other, and again for another width. Colours are properties of CSS, so that
// themes and paper need no other drawing.
const PANEL = 250; // pixels that a panel takes at least
const LEGEND = 130; // pixels for a name

const packed = (id) => new Blob([
  Uint8Array.from(atob(document.getElementById(id).textContent), (one) => one.charCodeAt(0)),
]);
const plots = await new Response(packed("plots").stream().pipeThrough(new DecompressionStream("gzip"))).json();
const drawn = new Map(); // of elements: the width each is drawn for, and its view

async function draw(element) {
  const width = element.clientWidth;
  if (!width || drawn.get(element)?.width === width) return;
  drawn.get(element)?.view?.finalize();
  drawn.set(element, { width });
  const { spec, columns } = structuredClone(plots[element.dataset.plot]);
  delete spec.title;
  spec.columns = Math.max(1, Math.min(columns, Math.floor(width / PANEL)));
  const { config } = spec;
  config.legend.columns = Math.max(1, Math.floor(width / LEGEND));
  config.autosize = { type: "pad" };
  let inner = Math.floor((width - 60) / spec.columns) - spec.spacing;
  const inside = element.firstElementChild; // Vega says what role the element has that it is given
  // What the axes take is known when they are drawn: the second time it fits.
  for (let time = 0; time < 2; time++) {
    spec.spec.width = Math.max(80, inner);
    const { view } = await vegaEmbed(inside, spec, {
      actions: false, ast: true, defaultStyle: false, renderer: "svg", tooltip: { disableDefaultStyle: true },
    });
    drawn.get(element).view = view;
    const over = element.querySelector("svg").width.baseVal.value - width;
    if (Math.abs(over) < 8) break;
    inner = Math.floor(inner - over / spec.columns);
  }
}

let queue = Promise.resolve();
// It is told of what begins to be shown as well, and of what no longer is: that has no width.
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) queue = queue.then(() => draw(target)).catch(console.error);
});
for (const element of document.querySelectorAll(".plot")) resized.observe(element);

for (const section of document.querySelectorAll(".scenario")) {
  // A card that lacks the view which is chosen shows the one that it has.
  const choose = (view) => {
    section.dataset.view = view;
    for (const card of section.querySelectorAll("figure")) {
      const mine = [...card.querySelectorAll(".plot")];
      const has = mine.some((one) => one.dataset.view === view);
      mine.forEach((one, number) => one.classList.toggle("only", !has && number === 0));
    }
  };
  section.addEventListener("change", (event) => choose(event.target.value));
  choose(section.querySelector("fieldset input:checked")?.value ?? section.dataset.view);
}

const node = document.getElementById("node");
const showNode = () => {
  for (const one of document.querySelectorAll(".chapter")) one.hidden = one.id !== node.value;
};
if (node) {
  node.addEventListener("change", showNode);
  showNode();
}

const root = document.documentElement;
const theme = document.getElementById("theme");
const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const showTheme = () => theme.setAttribute("aria-pressed", isDark());
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
showTheme();

function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
document.getElementById("download").addEventListener("click", () => {
  save("results.json.gz", packed("results"), "application/gzip");
});
const shownIn = (card) => [...card.querySelectorAll(".plot")].find((one) => one.clientWidth);
for (const button of document.querySelectorAll("[data-csv]")) {
  button.addEventListener("click", () => {
    const { plot } = shownIn(button.closest("figure")).dataset;
    const rows = plots[plot].spec.data.values;
    const heads = [...new Set(rows.flatMap(Object.keys))];
    const quoted = (cell) => `"${String(cell ?? "").replaceAll('"', '""')}"`;
    const lines = [heads, ...rows.map((row) => heads.map((head) => row[head]))];
    save(`${plot}.csv`, lines.map((line) => line.map(quoted).join(",")).join("\r\n"), "text/csv");
  });
}
for (const button of document.querySelectorAll("[data-svg]")) {
  button.addEventListener("click", () => {
    const plot = shownIn(button.closest("figure"));
    const shown = plot.querySelector("svg");
    if (!shown) return; // it is yet to be drawn
    const copy = shown.cloneNode(true);
    const originals = [shown, ...shown.querySelectorAll("*")];
    [copy, ...copy.querySelectorAll("*")].forEach((one, number) => {
      for (const name of ["fill", "stroke"]) {
        if (one.getAttribute(name)?.includes("var(")) one.setAttribute(name, getComputedStyle(originals[number])[name]);
      }
    });
    save(`${plot.dataset.plot}.svg`, new XMLSerializer().serializeToString(copy), "image/svg+xml");
  });
}
