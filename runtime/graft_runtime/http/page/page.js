// What strangers named or wrote reaches the page as text alone: textContent, never HTML.

const REFRESH_MILLISECONDS = 5000;
const MOST_TOKENS_SHOWN = 12;
const SIDES = [0, 1];
const element = (id) => document.getElementById(id);
let running = null;

function headers() {
  const key = element("key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function told(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Error(body?.error?.message ?? `${response.status} ${response.statusText}`);
}

async function get(path, signal) {
  return (await told(await fetch(path, { headers: headers(), signal }))).json();
}

function post(path, body, signal) {
  const sent = { method: "POST", headers: { "Content-Type": "application/json", ...headers() }, body: JSON.stringify(body), signal };
  return fetch(path, sent).then(told);
}

// A row of cells, each a text or an element.
function row(cells) {
  const made = document.createElement("tr");
  for (const cell of cells) made.insertCell().append(cell ?? "");
  return made;
}

function size(bytes) {
  if (bytes === null) return "";
  const units = ["B", "KiB", "MiB", "GiB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(bytes, 1)) / 10));
  return `${(bytes / 1024 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

// --- what there is

function showModels(names) {
  for (const side of SIDES) {
    const select = element(`model-${side}`);
    if ([...select.options].map((option) => option.value).join("\n") === names.join("\n")) continue;
    const chosen = select.value || names[side] || names[0];
    select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  }
}

function showAdapters(adapters) {
  const wanted = element("filter").value.toLowerCase();
  const shown = adapters.filter((adapter) => adapter.name.toLowerCase().includes(wanted));
  element("count").textContent = shown.length === adapters.length ? `(${adapters.length})` : `(${shown.length} of ${adapters.length})`;
  element("adapters").tBodies[0].replaceChildren(...shown.map(adapterRow));
}

function adapterRow(adapter) {
  const name = document.createElement("a");
  name.href = "#compare";
  name.textContent = adapter.name;
  name.addEventListener("click", () => { element("model-1").value = adapter.name; });
  const digest = document.createElement("code");
  digest.textContent = adapter.digest?.replace("sha256:", "").slice(0, 12) ?? "";
  const made = row([name, adapter.state, adapter.tier, adapter.method, String(adapter.rank ?? ""), size(adapter.bytes), digest]);
  if (!adapter.error) return made;
  made.className = "faulty";
  made.cells[1].append(`: ${adapter.error.code}`);
  made.title = adapter.error.message;
  return made;
}

let known = [];
async function refresh() {
  try {
    const [models, adapters, version] = await Promise.all([get("v1/models"), get("v1/adapters"), get("version")]);
    const names = models.data.map((model) => model.id);
    const context = models.data[0]?.max_model_len;
    element("about").textContent = `${names[0] ?? ""} · ${context ? `${context} tokens of context · ` : ""}version ${version.version}`;
    known = adapters.data;
    showModels(names);
    showAdapters(known);
    showFault(null);
  } catch (error) {
    showFault(error);
  }
}

function showFault(error) {
  element("fault").hidden = error === null;
  element("fault").textContent = error?.message ?? "";
}

// --- asking

function request(side, more) {
  const asked = { model: element(`model-${side}`).value, temperature: Number(element("temperature").value), ...more };
  const prompt = element("prompt").value;
  return element("chat").checked
    ? ["v1/chat/completions", { ...asked, messages: [{ role: "user", content: prompt }] }]
    : ["v1/completions", { ...asked, prompt }];
}

// The events of a stream, as they come.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const whole = waiting.split("\n\n");
    waiting = whole.pop();
    for (const event of whole) {
      if (!event.startsWith("data: ") || event === "data: [DONE]") continue;
      const body = JSON.parse(event.slice("data: ".length));
      if (body.error) throw new Error(body.error.message);
      yield body;
    }
  }
}

async function answer(side, signal) {
  const began = performance.now();
  element("tokens-table").hidden = true;
  element(`answer-${side}`).textContent = "";
  const [path, body] = request(side, { max_tokens: Number(element("tokens").value), stream: true, stream_options: { include_usage: true } });
  let first = null;
  let usage = null;
  for await (const event of events(await post(path, body, signal))) {
    const choice = event.choices[0];
    const text = choice?.text ?? choice?.delta?.content ?? "";
    if (text) first ??= performance.now() - began;
    element(`answer-${side}`).append(text);
    usage = event.usage ?? usage;
  }
  const seconds = (performance.now() - began) / 1000;
  element(`told-${side}`).textContent = `${usage?.completion_tokens ?? 0} tokens in ${seconds.toFixed(2)} s, the first after ${((first ?? 0) / 1000).toFixed(2)} s`;
}

// Do `work` for both sides at once; what goes wrong on one is told there and leaves the other alone.
async function onBothSides(work) {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  element("stop").disabled = false;
  const results = await Promise.all(SIDES.map(async (side) => {
    element(`told-${side}`).textContent = "";
    try {
      return await work(side, mine.signal);
    } catch (error) {
      if (running === mine) element(`told-${side}`).textContent = mine.signal.aborted ? "stopped" : error.message;
      return null;
    }
  }));
  if (running !== mine) return null;
  running = null;
  element("stop").disabled = true;
  return results;
}

// --- the next tokens

async function probabilities(side, signal) {
  const chat = element("chat").checked;
  const [path, body] = request(side, { max_tokens: 1, temperature: 0, ...(chat ? { logprobs: true, top_logprobs: 20 } : { logprobs: 20 }) });
  const told = (await (await post(path, body, signal)).json()).choices[0].logprobs;
  const pairs = chat ? told.content[0].top_logprobs.map((one) => [one.token, one.logprob]) : Object.entries(told.top_logprobs[0]);
  return new Map(pairs.map(([token, logprob]) => [token, Math.exp(logprob)]));
}

// Of a token that is none of the likeliest, only a bound is known.
function bar(probabilities, token) {
  const value = probabilities.get(token);
  const shown = value === undefined ? `< ${percent(Math.ceil(1000 * Math.min(...probabilities.values())) / 1000)}` : percent(value);
  const made = document.createElement("meter");
  made.max = 1;
  made.value = value ?? 0;
  const cell = document.createElement("span");
  cell.append(made, ` ${shown}`);
  return cell;
}

function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}

function showProbabilities([first, second]) {
  const tokens = [...new Set([...first.keys(), ...second.keys()])];
  const most = (token) => Math.max(first.get(token) ?? 0, second.get(token) ?? 0);
  tokens.sort((a, b) => most(b) - most(a));
  const table = element("tokens-table");
  SIDES.forEach((side) => { table.tHead.rows[0].cells[side + 1].textContent = element(`model-${side}`).value; });
  table.tBodies[0].replaceChildren(...tokens.slice(0, MOST_TOKENS_SHOWN).map((token) => {
    const [a, b] = [first.get(token), second.get(token)];
    const shown = document.createElement("code");
    shown.textContent = JSON.stringify(token);
    const change = a === undefined || b === undefined ? "" : `${b >= a ? "+" : "−"}${percent(Math.abs(b - a))}`;
    return row([shown, bar(first, token), bar(second, token), change]);
  }));
  table.hidden = false;
}

element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  onBothSides(answer);
});
element("next").addEventListener("click", async () => {
  if (!element("ask").reportValidity()) return;
  const found = await onBothSides(probabilities);
  if (found?.every((one) => one !== null)) showProbabilities(found);
});
element("stop").addEventListener("click", () => running?.abort());
element("key").addEventListener("change", refresh);
element("filter").addEventListener("input", () => showAdapters(known));
setInterval(() => document.hidden || refresh(), REFRESH_MILLISECONDS);
refresh();
