// A little of what a framework does: describe elements, and change the document only where it differs.
// Elements stay the same ones as long as they mean the same thing, so the focus and a selection stay, too.

const SVG = "http://www.w3.org/2000/svg";
const HTML = "http://www.w3.org/1999/xhtml";

/** Describes an element. Properties: attributes, `onclick` and the like, `key`, and `vars` (CSS variables). */
export function h(tag, props, ...children) {
  const flat = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  return { tag, props: props ?? {}, children: flat };
}

/** Makes the children of `parent` what `wanted` describes: elements and texts. */
export function patch(parent, wanted) {
  const list = [wanted].flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  const keyed = new Map();
  const others = [];
  for (const node of [...parent.childNodes]) {
    if (node.tensorbusKey === undefined) others.push(node);
    else keyed.set(node.tensorbusKey, node);
  }
  let place = parent.firstChild;
  for (const each of list) {
    const node = taken(parent, each, keyed, others);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  for (const node of [...keyed.values(), ...others]) node.remove();
}

function taken(parent, wanted, keyed, others) {
  if (typeof wanted !== "object") {
    const text = String(wanted);
    const at = others.findIndex((node) => node.nodeType === Node.TEXT_NODE);
    if (at < 0) return document.createTextNode(text);
    const [node] = others.splice(at, 1);
    if (node.data !== text) node.data = text;
    return node;
  }
  const { key } = wanted.props;
  let node;
  if (key !== undefined) {
    node = keyed.get(key);
    if (node !== undefined && node.localName === wanted.tag) keyed.delete(key);
    else node = undefined;
  } else {
    const at = others.findIndex((other) => other.localName === wanted.tag);
    if (at >= 0) [node] = others.splice(at, 1);
  }
  if (node === undefined) {
    const space = wanted.tag === "svg" || parent.namespaceURI === SVG ? SVG : HTML;
    node = document.createElementNS(space, wanted.tag);
    if (key !== undefined) node.tensorbusKey = key;
  }
  dress(node, wanted.props);
  patch(node, wanted.children);
  return node;
}

function dress(node, props) {
  const before = node.tensorbusProps ?? {};
  for (const [name, value] of Object.entries(props)) {
    if (name === "key" || before[name] === value) continue;
    if (name.startsWith("on")) node[name] = value;
    else if (name === "vars") for (const [v, text] of Object.entries(value)) node.style.setProperty(v, text);
    else if (value === null || value === undefined || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const name of Object.keys(before)) {
    if (name in props) continue;
    if (name.startsWith("on")) node[name] = null;
    else if (name !== "vars" && name !== "key") node.removeAttribute(name);
  }
  node.tensorbusProps = props;
}
