// The playground: one text, one running request, one answer that can be removed again. Text of the
// model and of the server only ever becomes values and text nodes, never markup.

const MARKER = "<FILL>";
const SAMPLE = `import os


def list_files(folder):
    """Return the names of the files in a folder."""
${MARKER}


for name in list_files("."):
    print(name)
`;
const HINTS = {
  infill: `The gap is at ${MARKER}, or, without it, at the cursor.`,
  complete: "Goes on from the cursor with what is before it alone.",
  docstring: "Documents the first definition at or after the cursor's line.",
  explain: "Explains the selection, or else all of the text, in a comment.",
  translate: "Writes the selection, or else all of the text, in another language.",
};
const REASONS = {
  stop: "the model ended", stop_string: "the task's end", length: "most tokens",
  time: "the server's time limit", cancelled: "cancelled", indent: "less indentation",
};

const $ = (id) => document.getElementById(id);
const editor = $("editor");
let running = null; // AbortController of the request that runs
let answer = null; // {start, end, saved}: where it is in the text, and the text without it

const task = () => document.querySelector("input[name=task]:checked").value;
const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const seconds = (s) => (s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(2)} s`);

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").className = bad ? "bad" : "";
}

function draw() {
  const text = editor.value;
  const mark = document.createElement("mark");
  const { start, end } = answer ?? { start: text.length, end: text.length };
  mark.textContent = text.slice(start, end);
  $("backdrop").replaceChildren(text.slice(0, start), mark, text.slice(end) + "\n");
  const lines = text.split("\n").length;
  $("gutter").textContent = Array.from({ length: lines }, (_, i) => i + 1).join("\n") + "\n\n\n";
  align();
}

function align() {
  $("backdrop").scrollTop = $("gutter").scrollTop = editor.scrollTop;
  $("backdrop").scrollLeft = editor.scrollLeft;
}

function show() {
  const now = task();
  $("hint").textContent = HINTS[now];
  document.querySelector(".languages").hidden = now === "infill" || now === "complete";
  document.querySelector(".target").hidden = now !== "translate";
}

// What to ask, and where the answer goes: an offset, or null for the panel.
function question() {
  const text = editor.value;
  const { selectionStart: from, selectionEnd: to } = editor;
  const chosen = from === to ? text : text.slice(from, to);
  const language = $("language").value;
  switch (task()) {
    case "infill": {
      const parts = text.split(MARKER);
      if (parts.length > 2) throw new Error(`${MARKER} is in the text more than once.`);
      const [prefix, suffix] = parts.length === 2 ? parts : [text.slice(0, from), text.slice(to)];
      return { body: { prefix, suffix }, text: prefix + suffix, at: prefix.length };
    }
    case "complete":
      return { body: { prompt: text.slice(0, from) }, text, at: from };
    case "docstring": {
      const line = text.slice(0, from).split("\n").length;
      return { body: { code: text, language, line }, text, at: 0 };
    }
    case "explain":
      return { body: { code: chosen, language }, text, at: null };
    default:
      return { body: { code: chosen, language, to: $("to").value }, text, at: null };
  }
}

async function* events(response) {
  let held = "";
  // not `for await`: Safari cannot go through a stream that way
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    const whole = (held + value).split("\n\n");
    held = whole.pop();
    for (const event of whole) {
      const data = event.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function ask(name, body, signal) {
  const headers = { "content-type": "application/json" };
  if ($("key").value) headers.authorization = `Bearer ${$("key").value.trim()}`;
  const seed = $("seed").value === "" ? null : Number($("seed").value);
  const response = await fetch(`/v1/tasks/${name}`, {
    method: "POST", headers, signal,
    body: JSON.stringify({
      ...body, seed, stream: true,
      max_tokens: Number($("tokens").value), temperature: Number($("temperature").value),
    }),
  });
  if (response.ok) return response;
  const said = (await response.json()).error?.message ?? response.statusText;
  if (response.status === 401) $("key").focus();
  const wait = response.headers.get("retry-after");
  throw new Error(wait ? `${said}. Try again in ${wait} s.` : said);
}

// A stream's pieces, put where the answer goes; `place` is told before the first of them.
function writer(asked) {
  const saved = { value: editor.value, from: editor.selectionStart, to: editor.selectionEnd };
  let task = { before: "", after: "", at: asked.at };
  const place = (given) => {
    if (asked.at === null) {
      task = given;
      $("panel").hidden = false;
      $("answer").textContent = given.before;
      return;
    }
    // offsets of the server count characters, those of JavaScript UTF-16 units
    const at = Array.from(asked.text).slice(0, given.at).join("").length;
    task = { ...given, at };
    editor.value = asked.text.slice(0, at) + given.before + given.after + asked.text.slice(at);
    const start = at + given.before.length;
    answer = { start, end: start, saved };
    draw();
  };
  const write = (text) => {
    if (asked.at === null) {
      $("answer").append(text);
      return;
    }
    editor.setRangeText(text, answer.end, answer.end);
    answer.end += text.length;
    editor.setSelectionRange(answer.end, answer.end);
    draw();
  };
  const end = () => {
    if (asked.at === null) $("answer").append(task.after);
    if (asked.at === null || answer === null) return;
    answer.start -= task.before.length;
    answer.end += task.after.length;
    draw();
  };
  return { place, write, end };
}

async function run() {
  if (running || !$("form").reportValidity()) return;
  const controller = (running = new AbortController());
  const started = performance.now();
  let first = null, last = null, out = null;
  busy(true);
  try {
    const asked = question();
    $("panel").hidden = $("figures").hidden = true;
    answer = null;
    out = writer(asked);
    const response = await ask(task(), asked.body, controller.signal);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      first ??= performance.now() - started;
      if (event.task) out.place(event.task);
      if (event.choices[0]?.text) out.write(event.choices[0].text);
      if (event.starpack) last = event.starpack;
    }
    if (last === null) throw new Error("The answer was cut off.");
    tell(last, first / 1000, (performance.now() - started) / 1000);
  } catch (error) {
    const cancelled = controller.signal.aborted;
    say(cancelled ? "Cancelled; what had come stays." : error.message, !cancelled);
  } finally {
    out?.end();
    running = null;
    busy(false);
  }
}

function tell(report, firstS, totalS) {
  const [t] = report.timings;
  const [budget] = report.budget;
  const rate = t.generated_tokens > 1 && t.decode_s > 0
    ? `${((t.generated_tokens - 1) / t.decode_s).toFixed(1)} tokens/s` : "–";
  const rows = {
    "Prompt": count(t.prompt_tokens, "token"),
    "Reused of it": count(t.reused_tokens, "token"),
    "First token": t.first_token_s === null ? "–" : seconds(t.first_token_s),
    "Seen here after": seconds(firstS),
    "Answer": count(t.generated_tokens, "token"),
    "Speed": rate,
    "Total": seconds(totalS),
    "Ended by": REASONS[report.finish_reasons[0]],
    "Room for a prompt": count(budget.room_tokens, "token"),
    "Seed": report.seed,
  };
  $("timings").replaceChildren(...Object.entries(rows).map(([name, value]) => {
    const row = document.createElement("div");
    const [term, figure] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    figure.textContent = value;
    row.append(term, figure);
    return row;
  }));
  $("figures").hidden = false;
  say(t.generated_tokens
    ? `Done: ${count(t.generated_tokens, "token")} in ${seconds(totalS)}.`
    : "The model had nothing to add.");
}

function busy(is) {
  editor.readOnly = is;
  $("run").disabled = is;
  $("cancel").disabled = !is;
  $("remove").disabled = is || answer === null;
  $("frame").setAttribute("aria-busy", is);
  if (is) say("Running …");
}

function remove() {
  if (running || answer === null) return;
  const { value, from, to } = answer.saved;
  editor.value = value;
  answer = null;
  editor.focus();
  editor.setSelectionRange(from, to);
  draw();
  busy(false);
  say("Removed.");
}

async function terms(event) {
  event.preventDefault();
  try {
    const response = await fetch("/licence");
    if (!response.ok) throw new Error(response.statusText);
    $("terms-text").textContent = await response.text();
    $("terms").showModal();
  } catch (error) {
    say(`The licence could not be loaded: ${error.message}`, true);
  }
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run();
  } else if (event.key === "Escape" && running) {
    event.preventDefault();
    running.abort();
  }
});
$("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
$("cancel").addEventListener("click", () => running?.abort());
$("remove").addEventListener("click", remove);
$("licence").addEventListener("click", terms);
$("close").addEventListener("click", () => $("terms").close());
document.querySelectorAll("input[name=task]").forEach((radio) =>
  radio.addEventListener("change", show));
editor.addEventListener("input", () => { answer = null; $("remove").disabled = true; draw(); });
editor.addEventListener("scroll", align);

editor.value = SAMPLE;
editor.setSelectionRange(SAMPLE.indexOf(MARKER), SAMPLE.indexOf(MARKER));
$("to").value = "javascript";
show();
draw();
