// The page of `fastdecode serve`: asks for a document, and shows it while it grows.

const GOALS = [
  { text: "Build a house with blue walls and a red roof in column 2." },
  { text: "Build a snowman in column 3." },
  { text: "Build a traffic light in column 4." },
  { text: "Build a tower of an orange square, a blue circle, a white diamond and a green triangle in column 2." },
  { text: "Draw: In column 1 a blue square, on it a yellow triangle. In column 4 a green diamond.", mode: "image-only" },
];
const EDITS = [
  { text: "Describe the picture.", mode: "text-only" },
  { text: "Put a purple diamond in column 4.", mode: "image-only" },
  { text: "Put a red square in column 1.", mode: "image-only" },
];
const SMALL = 160; // pictures of fewer pixels than this are enlarged with sharp edges

const at = (id) => document.getElementById(id);
const page = {
  form: at("form"), prompt: at("prompt"), mode: at("mode"), start: at("start"), stop: at("stop"), status: at("status"),
  error: at("error"), document: at("document"), examples: at("examples"), attached: at("attached"),
  picture: at("attached-picture"),
};
let running = null; // what stops the request that runs

// --- what is asked for ---------------------------------------------------------------------------------------------

function number(id) {
  const text = at(id).value.trim();
  return text === "" ? null : Number(text);
}

function request() {
  const mode = page.mode.value;
  const asked = { prompt: page.prompt.value.trim(), mode, stream: true, text: { do_sample: false } };
  if (!page.attached.hidden) asked.images = [page.picture.src];
  if (mode !== "text-only") {
    const guidance = { text: number("guidance-text"), image: number("guidance-image") };
    asked.guidance = guidance.text === null || guidance.image === null ? null : guidance;
    const temperature = number("temperature");
    asked.image = temperature === 0 ? { do_sample: false } : { temperature: temperature ?? 1, top_p: 0.9 };
  }
  const seed = number("seed");
  if (seed !== null) asked.seed = seed;
  return asked;
}

function showExamples() {
  const examples = page.attached.hidden ? GOALS : EDITS;
  page.examples.replaceChildren(...examples.map(({ text, mode }) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => {
      page.prompt.value = text;
      page.mode.value = mode ?? "interleaved-text-image";
      start();
    });
    return button;
  }));
}

function attach(source) {
  page.attached.hidden = source === null;
  if (source !== null) page.picture.src = source;
  showExamples();
  page.prompt.value = source === null ? GOALS[0].text : EDITS[1].text;
  page.mode.value = source === null ? "interleaved-text-image" : "image-only";
  page.prompt.focus();
  page.prompt.select();
}

// --- the document --------------------------------------------------------------------------------------------------

class Growing {
  constructor() {
    this.figure = this.frame = this.image = this.words = null;
    this.count = 0;
    page.document.replaceChildren();
  }

  card() {
    this.finishCard();
    this.count += 1;
    this.figure = document.createElement("figure");
    this.figure.className = "growing";
    this.caption = document.createElement("figcaption");
    const number = document.createElement("span");
    number.className = "number";
    number.textContent = this.count;
    this.words = document.createElement("span");
    this.words.className = "words";
    this.caption.append(number, this.words);
    this.figure.append(this.caption);
    page.document.append(this.figure);
    this.frame = this.image = null;
  }

  text(text) {
    if (!this.figure || this.frame) this.card();
    this.words.textContent = (this.words.textContent + text).trimStart();
  }

  begin() {
    if (!this.figure || this.frame) this.card();
    this.frame = document.createElement("div");
    this.frame.className = "frame cut";
    this.figure.prepend(this.frame);
    this.use = document.createElement("button");
    this.use.type = "button";
    this.use.className = "use";
    this.use.disabled = true;
    this.use.textContent = "Use";
    this.use.title = "Edit or describe this picture";
    this.use.setAttribute("aria-label", `Edit or describe picture ${this.count}`);
    this.caption.append(this.use);
  }

  show(source, whole) {
    if (source === null) return;
    if (!this.image) {
      this.image = document.createElement("img");
      this.image.addEventListener("load", ({ target }) => {
        target.classList.toggle("pixelated", target.naturalWidth < SMALL);
      });
      this.frame.append(this.image);
    }
    this.frame.classList.remove("cut");
    this.image.alt = (whole ? "" : "unfinished: ") + (this.words.textContent || page.prompt.value);
    this.image.src = source;
    if (whole) {
      this.use.disabled = false;
      this.use.addEventListener("click", () => attach(source));
    }
  }

  finishCard() {
    this.figure?.classList.remove("growing");
    if (this.frame && this.use.disabled) this.frame.classList.add("cut");
  }
}

// --- the stream ----------------------------------------------------------------------------------------------------

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const name = lines.find((line) => line.startsWith("event: "))?.slice(7);
      const data = lines.find((line) => line.startsWith("data: "))?.slice(6);
      if (name && data) yield [name, JSON.parse(data)];
    }
  }
}

function setState(state) {
  const busy = state === "running";
  page.document.dataset.state = state;
  page.document.setAttribute("aria-busy", busy);
  page.stop.disabled = !busy;
  page.start.textContent = busy ? "Again" : "Draw";
}

function tell(error) {
  page.error.hidden = !error;
  page.error.textContent = error ?? "";
}

const seconds = (from) => `${((performance.now() - from) / 1000).toFixed(1)} s`;

async function start() {
  running?.abort();
  const controller = running = new AbortController();
  const mine = () => running === controller;
  const began = performance.now();
  const growing = new Growing();
  tell(null);
  setState("running");
  page.status.textContent = "…";
  const clock = setInterval(() => { page.status.textContent = seconds(began); }, 100);
  let state = "failed";
  try {
    const response = await fetch("v1/generate", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(request()),
      signal: controller.signal,
    });
    if (!response.ok) {
      const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
      throw new Error(answer.error);
    }
    for await (const [name, content] of eventsOf(response)) {
      if (!mine()) return;
      if (name === "text") growing.text(content.text);
      else if (name === "picture_begun") growing.begin();
      else if (name === "picture_part") growing.show(content.png, false);
      else if (name === "picture_done") growing.show(content.png, true);
      else if (name === "finished") {
        state = content.error ? "failed" : "finished";
        tell(content.error);
        const rate = Math.round(content.tokens / content.seconds);
        clearInterval(clock);
        page.status.textContent =
          `${content.seconds.toFixed(2)} s · ${content.tokens} tokens · ${rate} tokens/s · seed ${content.seed}` +
          (content.reason === "length" ? " · cut at its greatest length" : "");
      }
    }
    if (state === "failed" && page.error.hidden) throw new Error("the server ended the answer before it was whole");
  } catch (error) {
    if (!mine()) return;
    if (error.name === "AbortError") {
      state = "stopped";
      page.status.textContent = `stopped after ${seconds(began)}`;
    } else {
      tell(error instanceof TypeError ? "the server cannot be reached" : error.message);
      page.status.textContent = "\u00a0";
    }
  } finally {
    clearInterval(clock);
    if (mine()) {
      growing.finishCard();
      running = null;
      setState(state);
    }
  }
}

page.form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (page.prompt.value.trim()) start();
  else page.prompt.focus();
});
page.stop.addEventListener("click", () => running?.abort());
page.prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    page.form.requestSubmit();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
at("detach").addEventListener("click", () => attach(null));
showExamples();
fetch("healthz").then((answer) => answer.json()).then(({ model, version }) => {
  at("model").textContent = `${model || "a model"}, fastdecode ${version}`;
}).catch(() => {});
