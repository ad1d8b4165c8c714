"use strict";
// Asks the server a few times a second what has changed, and shows that. No state lives here but what is on the page.

const $ = (id) => document.getElementById(id);
const LOOK_MS = 400;
const shown = new Map(); // stream → its element
let answered = 0, clicked = null;

const number = (value, digits = 1) => value === null || value === undefined ? "" : value.toFixed(digits);
const clock = (seconds) => new Date(seconds * 1000).toISOString().replace("T", " ").replace(/\.\d+Z$/, "");

function element(name, text, parent, kind) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (kind) made.className = kind;
  if (parent) parent.append(made);
  return made;
}

function choose(name) {
  $("stream").value = name;
  for (const [stream, one] of shown) one.box.classList.toggle("chosen", stream === name);
}

function box(stream) {
  let one = shown.get(stream.stream);
  if (one && one.kind === stream.kind) return one;
  if (one) one.box.remove();
  const isFrames = stream.kind === "frames";
  const figure = element("figure", "", isFrames ? $("tiles") : $("strips"), isFrames ? "tile" : "strip");
  figure.dataset.stream = stream.stream;
  one = { box: figure, kind: stream.kind };
  if (isFrames) {
    one.picture = element("img", "", figure);
    one.picture.alt = `newest frame of ${stream.stream}`;
  } else if (stream.kind === "samples") {
    one.canvas = element("canvas", "", figure);
    one.canvas.addEventListener("click", (event) => clickStrip(one, stream.stream, event));
  }
  const caption = element("figcaption", "", figure);
  element("strong", stream.stream, caption);
  one.facts = element("span", "", caption, "facts");
  figure.addEventListener("click", () => choose(stream.stream));
  shown.set(stream.stream, one);
  element("option", "", $("streams")).value = stream.stream;
  if (!$("stream").value) choose(stream.stream);
  return one;
}

function show(stream) {
  const one = box(stream);
  const facts = [];
  if (stream.state !== null) facts.push(`state ${stream.state}`);
  if (stream.lag_s !== null) facts.push(`lag ${number(stream.lag_s)} s`);
  if (stream.behind_s) facts.push(`boxes ${number(stream.behind_s)} s behind`);
  for (const [node, rate] of Object.entries(stream.rates)) facts.push(`${node} ${number(rate)}/s`);
  one.facts.textContent = [...facts, clock(stream.event_time)].join(" · ");
  const wrong = Object.entries(stream.status).map(([node, { status, error }]) => `${node}: ${status}${error ? ` (${error})` : ""}`);
  one.facts.classList.toggle("bad", wrong.length > 0);
  one.facts.title = wrong.join("\n");
  if (one.picture && stream.drawn !== one.drawn && !one.loading) {
    one.loading = true; // one at a time: a slow line shows fewer frames, not older ones
    const next = new Image();
    next.onload = () => { one.picture.src = next.src; one.picture.dataset.frame = stream.frame; one.drawn = stream.drawn; one.loading = false; };
    next.onerror = () => { one.loading = false; };
    next.src = `/api/frame/${encodeURIComponent(stream.stream)}?n=${encodeURIComponent(stream.drawn)}`;
  }
  if (one.canvas) drawStrip(one, stream.stream);
}

const color = (state) => `hsl(${(state * 137.5 + 200) % 360} 60% 55%)`;

async function drawStrip(one, name) {
  if (one.loading) return;
  one.loading = true;
  try {
    const strip = await (await fetch(`/api/strip/${encodeURIComponent(name)}`)).json();
    const canvas = one.canvas, ratio = window.devicePixelRatio || 1;
    const width = canvas.width = canvas.clientWidth * ratio, height = canvas.height = canvas.clientHeight * ratio;
    const pen = canvas.getContext("2d"), many = strip.times.length;
    if (many < 2) return;
    one.strip = strip;
    const from = strip.times[0], span = strip.times[many - 1] - from || 1;
    const x = (n) => (strip.times[n] - from) / span * width, band = 18 * ratio;
    for (let n = 0; n < many; n++) {
      if (strip.states[n] === null) continue;
      const end = n + 1 < many ? x(n + 1) : width;
      pen.fillStyle = color(strip.states[n]);
      pen.fillRect(x(n), height - band, end - x(n) + 1, band);
    }
    pen.fillStyle = "#000";
    pen.font = `${11 * ratio}px system-ui`;
    for (let n = 0; n < many; n++) // behind all bars, which would cover it
      if (strip.states[n] !== null && (n === 0 || strip.states[n] !== strip.states[n - 1]))
        pen.fillText(strip.states[n], x(n) + 3 * ratio, height - 5 * ratio);
    strip.channels.forEach((channel, c) => {
      const values = strip.values.map((row) => row[c] ?? null).filter((value) => value !== null);
      const low = Math.min(...values), high = Math.max(...values);
      pen.strokeStyle = `hsl(${c * 67 % 360} 65% 50%)`; pen.lineWidth = ratio; pen.beginPath();
      let drawing = false;
      for (let n = 0; n < many; n++) {
        const value = strip.values[n][c] ?? null;
        if (value === null) { drawing = false; continue; }
        const y = (height - band - 4 * ratio) * (1 - (value - low) / (high - low || 1)) + 2 * ratio;
        if (drawing) pen.lineTo(x(n), y); else pen.moveTo(x(n), y);
        drawing = true;
      }
      pen.stroke();
    });
  } finally { one.loading = false; }
}

function clickStrip(one, name, event) {
  if (!one.strip) return;
  const { times } = one.strip, place = event.offsetX / one.canvas.clientWidth;
  const at = times[0] + place * (times[times.length - 1] - times[0]);
  clicked = { stream: name, at: new Date(at * 1000).toISOString() };
  $("about").textContent = `${name} at ${clock(at)}`;
  $("prompt").showModal();
}

function answer({ stream, row, evidence }) {
  const item = document.createElement("li");
  item.dataset.question = row.question_id ?? row.prompt_id ?? "";
  const said = row.answer ?? row.op ?? row.status ?? "";
  element("strong", `${said}`, item, row.status && !["ok", "standing", "withdrawn"].includes(row.status) ? "bad" : "");
  const about = row.question ? ` — ${row.question}` : "";
  element("span", `${about} (${stream}${row.as_of ? `, ${row.as_of.replace("T", " ").replace("Z", "")}` : ""})`, item);
  if (row.error) element("p", row.error, item, "bad");
  const frames = element("div", "", item, "evidence");
  for (const at of evidence) {
    const figure = element("figure", "", frames), picture = element("img", "", figure);
    picture.alt = `evidence at ${clock(at)}`;
    picture.onerror = () => { picture.remove(); };
    picture.src = `/api/frame/${encodeURIComponent(stream)}?at=${at}`;
    element("figcaption", clock(at), figure);
  }
  return item;
}

function put(item) {
  const same = item.dataset.question && [...$("answers").children].find((one) => one.dataset.question === item.dataset.question && one.textContent === item.textContent);
  if (same) return;
  $("answers").prepend(item);
  while ($("answers").children.length > 50) $("answers").lastChild.remove();
}

async function send(path, body) {
  const waiting = element("li", "…");
  $("answers").prepend(waiting);
  try {
    const reply = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    const said = await reply.json();
    waiting.remove();
    if (said.error) $("answers").prepend(element("li", said.error, null, "bad")); else put(answer(said));
  } catch (error) {
    waiting.textContent = `the server cannot be reached (${error.message})`;
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send("/api/ask", { stream: $("stream").value, question: $("question").value, standing: $("standing").checked });
});

$("prompt").addEventListener("close", () => {
  if ($("prompt").returnValue === "label" && clicked)
    send("/api/prompt", { ...clicked, kind: "label", value: Number($("value").value) });
});

async function look() {
  try {
    const reply = await fetch(`/api/state?after=${answered}`);
    if (reply.status === 401) { location.reload(); return; }
    const state = await reply.json();
    document.title = $("pipeline").textContent = state.pipeline;
    const epoch = state.committed === null ? "" : `epoch ${state.committed} committed · `;
    $("facts").textContent = `${epoch}${state.streams.length} ${state.streams.length === 1 ? "stream" : "streams"} · ${state.questions.inside} questions at work`;
    const notice = state.advice ?? (state.problem ? `the pipeline cannot be seen: ${state.problem}` : null);
    $("notice").hidden = !notice;
    $("notice").textContent = notice ?? "";
    state.streams.forEach(show);
    state.answers.reverse().forEach((one) => put(answer(one)));
    answered = state.answered;
  } catch (error) {
    $("notice").hidden = false;
    $("notice").textContent = `the server cannot be reached (${error.message})`;
  }
  setTimeout(look, LOOK_MS);
}
look();
