"use strict";
// The page reads without this; here is only what asks the server.

const PEN = 0.075; // of the side
const SHOWN = 10; // labels at most

function element(kind, text) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Sends a request; fills `place` with what came and how long it took.
async function ask(place, path, body, type, show) {
  place.replaceChildren(element("p", "..."));
  const headers = { "Content-Type": type };
  const key = document.getElementById("key");
  if (key && key.value) headers.Authorization = "Bearer " + key.value;
  const began = performance.now();
  try {
    const answer = await fetch(path, { method: "POST", headers, body });
    const took = performance.now() - began;
    const text = await answer.text();
    let told = null;
    try { told = JSON.parse(text); } catch { told = { error: text }; }
    const line = element("p", `status ${answer.status}, ${took.toFixed(1)} ms seen from this page`);
    if (!answer.ok) {
      line.className = "bad";
      place.replaceChildren(line, element("p", told.error));
    } else {
      place.replaceChildren(...show(told, text), line);
    }
  } catch (error) {
    const line = element("p", "no answer: " + error.message);
    line.className = "bad";
    place.replaceChildren(line);
  }
  place.scrollIntoView({ block: "nearest" });
}

// A hint speaks of the query; who reads this page has a box to tick.
function inWords(hint) {
  const box = "\u201cdark on light\u201d";
  return hint
    .replaceAll("leave out ?invert=true", `untick ${box}`)
    .replaceAll("try ?invert=true", `tick ${box}`)
    .replaceAll("?invert=true", `${box} ticked`);
}

function said(told) {
  const hint = told.parameters?.hint ? [element("p", "hint: " + inWords(told.parameters.hint))] : [];
  for (const line of hint) line.className = "bad";
  if (told.prediction !== undefined) return [element("h3", `${told.prediction} ${told.units}`.trim()), ...hint];
  const grid = element("div");
  grid.className = "scores";
  // Sorted here: an object of JavaScript has numbers as names in their own order.
  const ranked = Object.entries(told.probabilities).sort((a, b) => b[1] - a[1]);
  for (const [label, share] of ranked.slice(0, SHOWN)) {
    const bar = element("progress");
    bar.max = 1;
    bar.value = share;
    bar.ariaLabel = label;
    grid.append(element("span", label), bar, element("span", (100 * share).toFixed(1) + " %"));
  }
  return [element("h3", told.label ?? (told.labels.join(", ") || "none")), ...hint, grid];
}

function raw(told, text) {
  const pre = element("pre", text);
  pre.className = "wrap";
  return [pre];
}

// A black sheet, drawn on in white with a finger, a pen or a mouse.
function sheet(canvas) {
  const pen = canvas.getContext("2d");
  let drawing = false;
  function clear() {
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, canvas.width, canvas.height);
  }
  function at(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * canvas.width,
            (event.clientY - box.top) / box.height * canvas.height];
  }
  canvas.addEventListener("pointerdown", (event) => {
    drawing = true;
    canvas.setPointerCapture(event.pointerId);
    pen.strokeStyle = "#fff";
    pen.lineWidth = PEN * canvas.width;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(...at(event));
    pen.lineTo(...at(event));
    pen.stroke();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drawing) return;
    pen.lineTo(...at(event));
    pen.stroke();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => { drawing = false; });
  }
  clear();
  return clear;
}

for (const form of document.querySelectorAll(".try")) {
  const path = form.dataset.path;
  const find = (name) => form.querySelector(`[data-part=${name}]`);
  const on = (name, act) => find(name)?.addEventListener("click", act);
  const answer = find("answer");
  form.hidden = false;
  on("ask", () => ask(answer, path + "/infer", find("request").value, "application/json", raw));
  on("send", () => {
    const file = find("file").files[0];
    if (!file) return find("file").click();
    const invert = find("invert")?.checked ? "?invert=true" : "";
    ask(answer, path + "/predict" + invert, file, "application/octet-stream", said);
  });
  on("sampled", async () => {
    const picture = await (await fetch(find("sample").src)).blob();
    ask(answer, path + "/predict", picture, "image/png", said);
  });
  const canvas = find("canvas");
  if (canvas) {
    on("clear", sheet(canvas));
    on("drawn", () => canvas.toBlob((picture) =>
      ask(answer, path + "/predict", picture, "image/png", said), "image/png"));
  }
}
