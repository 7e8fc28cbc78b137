"use strict";
(() => {
  const { names, tokens } = JSON.parse(document.getElementById("data").textContent);
  const text = document.getElementById("text");
  const panel = document.getElementById("panel");
  const events = [...text.querySelectorAll(".e > bdi")];
  const spans = [...text.querySelectorAll(".e > bdi > span")];
  const place = new Map(spans.map((span, index) => [span, index]));
  const starts = [];
  for (const event of events) {
    const start = starts.at(-1)?.end ?? 0;
    starts.push({ start, end: start + event.children.length });
  }
  let current = 0;

  const eventOf = (index) => starts.findIndex((event) => index < event.end);

  /* [[expert, weight], …] of every block, and the mean over blocks. */
  function blocksOf(index) {
    const row = tokens[index];
    const blocks = [];
    for (let at = 2; at < row.length;) {
      const count = row[at++];
      const block = [];
      for (let i = 0; i < count; i++, at += 2) block.push([row[at], row[at + 1] / 1000]);
      blocks.push(block);
    }
    const mean = new Map();
    for (const block of blocks)
      for (const [expert, weight] of block) mean.set(expert, (mean.get(expert) ?? 0) + weight / blocks.length);
    return { blocks, mean: [...mean].sort((a, b) => b[1] - a[1]) };
  }

  function bar(weights) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("class", "bar");
    svg.setAttribute("viewBox", "0 0 100 10");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    let x = 0;
    for (const [expert, weight] of weights) {
      const rect = document.createElementNS(space, "rect");
      rect.setAttribute("class", "f" + (expert % 12));
      rect.setAttribute("x", x);
      rect.setAttribute("width", 100 * weight);
      rect.setAttribute("height", 10);
      svg.append(rect);
      x += 100 * weight;
    }
    return svg;
  }

  function rowOf(title, weights) {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = title;
    const picture = document.createElement("td");
    picture.append(bar(weights));
    const words = document.createElement("td");
    words.textContent = weights.map(([expert, weight]) => `${names[expert]} ${weight.toFixed(2)}`).join("  ");
    row.append(head, picture, words);
    return row;
  }

  function show(index) {
    const [surprise, unowned] = tokens[index];
    const { blocks, mean } = blocksOf(index);
    const own = spans[index].textContent;
    panel.querySelector("h3").textContent = own === "" ? "(part of the character before)" : JSON.stringify(own);
    panel.querySelector("p").textContent = `token ${index} of ${tokens.length}, event ${eventOf(index) + 1}, surprise ` +
      (surprise / 100).toFixed(2) + (unowned < 0 ? "" : `, unowned ${(unowned / 1000).toFixed(3)}`);
    const rows = [rowOf("all blocks", mean), ...blocks.map((block, number) => rowOf(`block ${number}`, block))];
    panel.querySelector("tbody").replaceChildren(...rows);
    panel.hidden = false;
  }

  function go(index) {
    spans[current].removeAttribute("tabindex");
    current = Math.max(0, Math.min(spans.length - 1, index));
    spans[current].tabIndex = 0;
    spans[current].focus();
    show(current);
  }

  const moves = {
    ArrowLeft: () => current - 1,
    ArrowRight: () => current + 1,
    ArrowUp: () => {
      const event = eventOf(current);
      return starts[event].start < current ? starts[event].start : starts[Math.max(0, event - 1)].start;
    },
    ArrowDown: () => starts[Math.min(starts.length - 1, eventOf(current) + 1)].start,
    Home: () => 0,
    End: () => spans.length - 1,
  };

  text.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Escape") panel.hidden = true;
    if (!Object.hasOwn(moves, event.key)) return;
    event.preventDefault();
    go(moves[event.key]());
  });
  text.addEventListener("click", (event) => {
    const index = place.get(event.target.closest(".e > bdi > span"));
    if (index !== undefined) go(index);
  });
  text.addEventListener("focusin", (event) => {
    const index = place.get(event.target);
    if (index !== undefined && panel.hidden) show(index);
  });

  const leaders = tokens.map((_, index) => blocksOf(index).mean[0][0]);
  for (const button of document.querySelectorAll("button.k"))
    button.addEventListener("click", () => {
      const wanted = button.getAttribute("aria-pressed") !== "true";
      for (const each of document.querySelectorAll("button.k")) each.setAttribute("aria-pressed", String(wanted && each === button));
      const expert = names.indexOf(button.dataset.name);
      spans.forEach((span, index) => span.classList.toggle("on", wanted && leaders[index] === expert));
      text.classList.toggle("only", wanted);
    });
  spans[0].tabIndex = 0;
  const asked = /^#t(\d+)$/.exec(location.hash);
  if (asked) go(Number(asked[1]));
})();
