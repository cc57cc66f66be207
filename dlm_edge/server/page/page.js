"use strict";

// Chat with one model, and its canvas drawn as it denoises. Model output reaches the document as text nodes only.

const $ = (id) => document.getElementById(id);
const KEY = "dlm-edge-key";
const THEME = "dlm-edge-theme";
const SPECIAL = /^<[|｜]?[^<>\s]{1,40}[|｜]?>$/; // how tokenizers write an end of text
const LAST_EXACT = 2 ** 53 - 1;

const conversation = []; // {role, content}
let model = null; // as GET /v1/models describes it
let running = null; // AbortController of the present answer

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function say(text, isProblem = false) {
  $("status").textContent = text;
  $("status").classList.toggle("problem", isProblem);
}

// ---- The server

function keyFromAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("key");
  if (!found) return;
  sessionStorage.setItem(KEY, found);
  history.replaceState(null, "", location.pathname); // not into bookmarks and over shoulders
}

async function ask(path, body, signal) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  const response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body), credentials: "omit" });
  if (response.ok) return response;
  if (response.status === 401) {
    askForKey(key ? "The server does not know this key." : "");
    throw new Error("The server needs its key.");
  }
  const answer = await response.json().catch(() => null);
  throw new Error(answer?.error?.message ?? `The server answered ${response.status}.`);
}

async function* serverEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (waiting + value).split("\n\n");
    waiting = parts.pop();
    for (const part of parts) {
      const event = { name: "", data: "" };
      for (const line of part.split("\n")) {
        if (line.startsWith("event: ")) event.name = line.slice(7);
        if (line.startsWith("data: ")) event.data = line.slice(6);
      }
      if (event.data) yield event;
    }
  }
}

async function connect() {
  try {
    const answer = await ask("v1/models");
    model = (await answer.json()).data[0];
  } catch (error) {
    say(error.message, true);
    return;
  }
  $("model").textContent = `${model.id} · ${model.dlm.family} · ${model.dlm.context.toLocaleString()} tokens of context`;
  $("attention").replaceChildren(...model.dlm.attention.map((name) => element("option", "", name)));
  say("");
  $("prompt").focus();
}

// ---- The key

function askForKey(problem) {
  $("key-problem").textContent = problem;
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

$("key-form").addEventListener("submit", () => {
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  connect();
});

$("forget-key").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  askForKey("");
});

// ---- Settings

function showSettings() {
  const isStatic = $("sampler").value === "static";
  $("steps-row").hidden = !isStatic;
  $("threshold-row").hidden = isStatic;
  $("budget-row").hidden = !["losa", "quest", "mage"].includes($("attention").value);
  $("threshold-value").textContent = Number($("threshold").value).toFixed(2);
  $("temperature-value").textContent = Number($("temperature").value).toFixed(2);
}

function settings() {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const temperature = number("temperature");
  const isStatic = $("sampler").value === "static";
  return {
    max_tokens: number("max-tokens"),
    temperature,
    // Drawn here, where numbers are exact to 53 bits, so that the one shown is the one used.
    seed: number("seed") ?? (temperature > 0 ? crypto.getRandomValues(new Uint32Array(1))[0] : undefined),
    dlm: {
      canvas: true,
      sampler: isStatic ? "static" : "threshold",
      steps: isStatic ? number("steps") : undefined,
      threshold: isStatic ? undefined : number("threshold"),
      attention: $("attention").value || undefined,
      budget: $("budget-row").hidden ? undefined : number("budget"),
    },
  };
}

$("settings").addEventListener("input", showSettings);
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("seed").addEventListener("input", () => {
  $("seed").setCustomValidity(Number($("seed").value) > LAST_EXACT ? `At most ${LAST_EXACT}.` : "");
});
$("show-settings").addEventListener("click", () => {
  $("settings").hidden = !$("settings").hidden;
  $("show-settings").setAttribute("aria-expanded", String(!$("settings").hidden));
});

// ---- One answer, from masks to text

class AnswerView {
  constructor() {
    this.item = element("li", "answer");
    this.text = element("div", "text");
    this.final = document.createTextNode("");
    this.canvas = element("span", "canvas");
    this.canvas.setAttribute("aria-hidden", "true"); // changes many times a second
    this.progress = element("div", "progress");
    this.done = element("i");
    this.numbers = element("div", "numbers");
    this.text.append(this.final, this.canvas);
    this.progress.append(this.done);
    this.item.append(this.text, this.progress, this.numbers);
    this.seen = new Map(); // absolute position -> token id, to mark what changed
    this.began = performance.now();
  }

  commit(text) {
    this.final.data += text;
  }

  draw(frame) {
    const cells = frame.cells.map((cell, i) => this.cell(cell, frame.committed_tokens + i));
    this.canvas.replaceChildren(...cells);
    const left = frame.cells.filter((cell) => cell.token_id === null).length / Math.max(frame.cells.length, 1);
    this.done.style.setProperty("--done", `${(100 * (frame.block + 1 - left)) / frame.n_blocks}%`);
    const seconds = (performance.now() - this.began) / 1000;
    this.count([
      `step ${frame.step}`,
      `block ${frame.block + 1} of ${frame.n_blocks}`,
      `${frame.committed_tokens} tokens`,
      `${seconds.toFixed(1)} s`,
    ]);
  }

  cell(cell, position) {
    const sure = `sure-${Math.min(4, Math.max(0, Math.floor(cell.confidence * 5)))}`;
    if (cell.token_id === null) return element("span", `cell mask ${sure}`);
    const isNew = this.seen.get(position) !== cell.token_id;
    this.seen.set(position, cell.token_id);
    const isEnd = SPECIAL.test(cell.text);
    const names = `cell word ${sure}${isNew ? " fresh" : ""}${isEnd ? " end" : ""}`;
    return element("span", names, isEnd ? "·" : cell.text);
  }

  count(parts) {
    this.numbers.replaceChildren(...parts.map((part) => element("span", "", part)));
  }

  end(usage, dlm) {
    this.close();
    this.count([
      `${usage.completion_tokens} tokens`,
      `${dlm.tokens_per_s.toFixed(1)} tokens/s`,
      `${dlm.steps} steps`,
      `${dlm.forward_passes} passes`,
      ...(dlm.density < 1 ? [`${(100 * dlm.density).toFixed(0)} % of the prefix read`] : []),
      `seed ${dlm.seed}`,
      ...(dlm.stop_reason === "length" ? ["stopped at max tokens"] : []),
    ]);
  }

  close(problem = "") {
    this.canvas.remove();
    this.progress.remove();
    if (problem) this.numbers.replaceChildren(element("span", "problem", problem));
  }
}

async function answer(view) {
  const asked = { model: model.id, stream: true, stream_options: { include_usage: true }, ...settings() };
  const last = conversation[conversation.length - 1].content;
  const hasChat = model.dlm.has_chat_template;
  const path = hasChat ? "v1/chat/completions" : "v1/completions";
  const response = await ask(path, { ...asked, ...(hasChat ? { messages: conversation } : { prompt: last }) }, running.signal);
  let totals = null;
  for await (const event of serverEvents(response)) {
    if (event.data === "[DONE]") return totals;
    const value = JSON.parse(event.data);
    if (value.error) throw new Error(value.error.message);
    if (event.name === "canvas") view.draw(value);
    else if (value.usage) totals = value;
    else view.commit(value.choices[0].delta?.content ?? value.choices[0].text ?? "");
    follow();
  }
  throw new Error("The connection ended before the answer did.");
}

async function send(text) {
  $("welcome").hidden = true;
  const mine = element("li", "mine");
  mine.append(element("div", "text", text));
  const view = new AnswerView();
  $("messages").append(mine, view.item);
  conversation.push({ role: "user", content: text });
  running = new AbortController();
  showRunning();
  try {
    const totals = await answer(view);
    view.end(totals.usage, totals.dlm);
    say(`Answered: ${totals.usage.completion_tokens} tokens.`);
  } catch (error) {
    const isStopped = error.name === "AbortError";
    view.close(isStopped ? "stopped" : error.message);
    say(isStopped ? "Stopped." : error.message, !isStopped);
  }
  conversation.push({ role: "assistant", content: view.final.data });
  running = null;
  showRunning();
  follow();
}

function showRunning() {
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  $("new-chat").disabled = running !== null;
  if (running) say("");
  $("prompt").focus();
}

function follow() {
  const talk = $("talk");
  if (talk.scrollHeight - talk.scrollTop - talk.clientHeight < 160) talk.scrollTop = talk.scrollHeight;
}

// ---- Writing

function fit() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

$("prompt").addEventListener("input", fit);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value;
  if (!text.trim() || running) return;
  if (!model) return connect();
  if (!$("settings").checkValidity()) return say("A setting is out of range.", true);
  $("prompt").value = "";
  fit();
  send(text);
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("key-dialog").open) running?.abort();
});
$("new-chat").addEventListener("click", () => {
  conversation.length = 0;
  $("messages").replaceChildren();
  $("welcome").hidden = false;
  say("");
  $("prompt").focus();
});

// ---- Light and dark

function setTheme(name) {
  document.documentElement.dataset.theme = name;
}

$("theme").addEventListener("click", () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem(THEME, next);
  setTheme(next);
});
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const chosen = () => localStorage.getItem(THEME) ?? (prefersDark.matches ? "dark" : "light");
prefersDark.addEventListener("change", () => setTheme(chosen()));
setTheme(chosen());

keyFromAddress();
showSettings();
connect();
