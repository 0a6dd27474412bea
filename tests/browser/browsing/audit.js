// What is wrong with a page for people who use a keyboard or a screen reader, or whose eyes are poor: the rules of
// WCAG 2.2 that a program can check. Names, labels, headings, unique ids, reflow, and contrast (1.4.3, AA).
() => {
  const wrong = [];
  const visible = (e) => e.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const named = (e) => (e.getAttribute("aria-label") || e.innerText || e.title
    || (e.getAttribute("aria-labelledby") || "").split(" ").map((id) => document.getElementById(id)?.innerText).join("")
    || [...(e.labels ?? [])].map((l) => l.innerText).join("")).trim();
  for (const e of document.querySelectorAll(
      "a, button, input, select, summary, [role=img], [role=meter], [role=progressbar], [role=region], nav, dialog[open]"))
    if (visible(e) && !named(e)) wrong.push(`no name: ${e.outerHTML.slice(0, 120)}`);
  for (const e of document.querySelectorAll("img:not([alt])")) wrong.push(`no alt: ${e.src}`);
  for (const e of document.querySelectorAll("table th:not([scope])")) wrong.push(`no scope: ${e.innerText}`);
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((one) => one === id).length > 1) wrong.push(`id twice: ${id}`);
  for (const name of ["for", "aria-labelledby"])
    for (const e of document.querySelectorAll(`[${name}]`))
      for (const id of e.getAttribute(name).split(" "))
        if (!document.getElementById(id) && e.id !== "dialog") wrong.push(`${name} to nothing: ${id}`);
  for (const [tag, count] of [["main", 1], ["h1", 1]])
    if (document.querySelectorAll(tag).length !== count) wrong.push(`not one ${tag}`);
  let level = 1;
  for (const e of document.querySelectorAll("main :is(h1,h2,h3,h4)")) {
    const own = Number(e.localName[1]);
    if (own > level + 1) wrong.push(`heading ${own} behind ${level}: ${e.innerText}`);
    level = own;
  }
  if (!document.documentElement.lang || !document.title) wrong.push("no language or title");
  if (document.documentElement.scrollWidth > innerWidth) wrong.push(`wider than the window: ${document.documentElement.scrollWidth}`);

  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = color;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const ground = (e) => {
    const layers = [];
    for (; e; e = e.parentElement) {
      const color = rgba(getComputedStyle(e).backgroundColor);
      if (color[3] > 0) layers.push(color);
      if (color[3] === 1) break;
    }
    return layers.reverse().reduce((under, [r, g, b, a]) =>
      [r, g, b].map((c, at) => c * a + under[at] * (1 - a)), [255, 255, 255]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [high, low] = [light(one), light(other)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  let checked = 0;
  for (const e of document.querySelectorAll("body *")) {
    const text = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!text || !visible(e) || e.disabled || e.closest("noscript, .hidden")) continue;
    const style = getComputedStyle(e);
    const ink = rgba(e.namespaceURI.endsWith("svg") ? style.fill : style.color).slice(0, 3);
    const ratio = contrast(ink, ground(e));
    checked += 1;
    if (ratio < 4.5) wrong.push(`contrast ${ratio.toFixed(2)}: ${e.className} ${e.textContent.slice(0, 40)}`);
  }
  if (checked < 10) wrong.push(`only ${checked} texts were looked at`);
  return wrong;
}
