// Runs outside the frame that holds the page, and writes what it finds into its own document.
const frame = document.querySelector("iframe");
const win = frame.contentWindow;
const page = frame.contentDocument;
const problems = [];
const width = win.innerWidth;

const said = (text) => JSON.stringify(text.trim().replace(/\s+/g, " ").slice(0, 40));
const name = (element) => element.tagName.toLowerCase() + (element.id ? "#" + element.id : "") +
  (element.className && element.className.baseVal === undefined ? "." + element.className : "") + " " + said(element.textContent);
const common = (a, b) => ({
  left: Math.max(a.left, b.left), top: Math.max(a.top, b.top), right: Math.min(a.right, b.right), bottom: Math.min(a.bottom, b.bottom),
});
const area = (box) => Math.max(0, box.right - box.left) * Math.max(0, box.bottom - box.top);

// What of a box can be seen: boxes around it that scroll or hide cut it.
function visible(box, element) {
  let seen = { left: box.left, top: box.top, right: box.right, bottom: box.bottom };
  for (let outer = element; outer && outer !== page.documentElement; outer = outer.parentElement) {
    if (win.getComputedStyle(outer).overflowX !== "visible" && outer.tagName !== "BODY" && outer.tagName !== "svg") {
      seen = common(seen, outer.getBoundingClientRect());
    }
  }
  return seen;
}

function texts() {
  const found = [];
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || ["STYLE", "SCRIPT", "title", "TITLE"].includes(element.tagName)) continue;
    if (!element.checkVisibility({ contentVisibilityAuto: true, opacityProperty: true, visibilityProperty: true })) continue;
    const range = page.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      // Fonts have room above and below their letters.
      const slack = 0.18 * Math.min(box.height, box.width);
      const seen = visible({ left: box.left + 1, right: box.right - 1, top: box.top + slack, bottom: box.bottom - slack }, element);
      if (area(seen) > 1) found.push({ box: seen, node, element, text: node.data });
    }
  }
  return found;
}

function fontSize(element) {
  const size = parseFloat(win.getComputedStyle(element).fontSize);
  const drawing = element.closest("svg");
  return drawing ? size * drawing.getBoundingClientRect().width / drawing.viewBox.baseVal.width : size;
}

function look(when) {
  const say = (problem) => problems.push(when + ": " + problem);
  if (page.documentElement.scrollWidth > width) {
    const wide = [...page.body.querySelectorAll("*")].filter((each) => visible(each.getBoundingClientRect(), each.parentElement).right > width + 1);
    say("the page scrolls sideways: " + page.documentElement.scrollWidth + " pixels of " + width + ", by " + wide.slice(0, 3).map(name).join(", "));
  }
  const found = texts().sort((a, b) => a.box.top - b.box.top);
  found.forEach((one, at) => {
    for (let next = at + 1; next < found.length && found[next].box.top < one.box.bottom; next++) {
      const other = found[next];
      if (other.node !== one.node && area(common(one.box, other.box)) > 2) say("text covers text: " + said(one.text) + " and " + said(other.text));
    }
    if (one.box.left < -1 || one.box.right > width + 1) say("text leaves the page: " + said(one.text));
    if (fontSize(one.element) < 8) say("text of " + fontSize(one.element).toFixed(1) + " pixels: " + said(one.text));
    const drawing = one.element.closest("svg");
    if (drawing) {
      const around = drawing.getBoundingClientRect();
      if (one.box.left < around.left - 1 || one.box.right > around.right + 1 || one.box.top < around.top - 1 || one.box.bottom > around.bottom + 1) {
        say("text leaves its drawing: " + said(one.text));
      }
    }
  });
  const boxes = [...page.querySelectorAll("h1, h2, h3, p, pre, nav, ul, dl, figure, .card, .wide, summary")]
    .filter((each) => each.checkVisibility({ contentVisibilityAuto: true }));
  boxes.forEach((one, at) => boxes.slice(at + 1).forEach((other) => {
    if (one.contains(other) || other.contains(one)) return;
    const shared = common(visible(one.getBoundingClientRect(), one), visible(other.getBoundingClientRect(), other));
    if (shared.right - shared.left > 1 && shared.bottom - shared.top > 1) say("boxes overlap: " + name(one) + " and " + name(other));
  }));
}

const drawings = () => [...page.querySelectorAll("svg, img")].map((each) => {
  const box = each.getBoundingClientRect();
  return { left: box.left, top: box.top, right: box.right, bottom: box.bottom, shapes: each.querySelectorAll("path, use, text").length };
});
for (const each of drawings()) {
  if (each.right - each.left < 100 || each.bottom - each.top < 50 || each.shapes < 5) problems.push("an empty drawing: " + JSON.stringify(each));
}
look("closed");
const closed = drawings();
const height = page.documentElement.scrollHeight;
page.querySelectorAll("details").forEach((each) => { each.open = true; });
look("open");
const pre = document.createElement("pre");
pre.id = "findings";
pre.textContent = JSON.stringify({ width, height, drawings: closed, texts: texts().length, problems });
document.body.append(pre);
