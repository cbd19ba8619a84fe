// The interactive figures of the book: no library, no network. `figure(root)` builds one from the JSON inside `root`.
(() => {
  const make = (tag, options = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(options))
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const inflate = async (text) =>
    new Uint8Array(await new Response(new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());
  const picture = (text) => new Promise((done, fail) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = fail;
    image.src = "data:image/webp;base64," + text;
  });
  const drawMap = (canvas, values, low, high, colours) => {        // values of an S x S grid, row by row
    const side = Math.round(Math.sqrt(values.length));
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const context = canvas.getContext("2d"), image = context.createImageData(side, side);
    values.forEach((v, i) => {
      const k = 3 * Math.max(0, Math.min(255, Math.round((255 * (v - low)) / (high - low || 1))));
      image.data.set([colours[k], colours[k + 1], colours[k + 2], 255], 4 * i);
    });
    context.putImageData(image, 0, 0);
  };
  const drawFrame = (canvas, strip, index) => {
    const side = strip.height;
    canvas.width = canvas.height = side;
    canvas.getContext("2d").drawImage(strip, index * side, 0, side, side, 0, 0, side, side);
  };
  const ink = (colour) => {                                        // black or white, whichever reads better on it
    const [r, g, b] = [1, 3, 5].map((i) => (parseInt(colour.slice(i, i + 2), 16) / 255) ** 2.2);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000000" : "#ffffff";
  };
  const panel = (parent, label) => {
    const canvas = make("canvas", { role: "img", "aria-label": label }), caption = make("figcaption", {}, label);
    parent.append(make("figure", { class: "panel" }, canvas, caption));
    const say = (text) => { caption.textContent = text; canvas.setAttribute("aria-label", text); };
    return { canvas, say };
  };
  const chooser = (label, options, change) => {
    const select = make("select", { onchange: () => change(select.selectedIndex) }, ...options.map((o) => make("option", {}, o)));
    return [make("label", {}, label, select), select];
  };
  // one of several buttons is checked; arrow keys move in a grid of so many columns
  const radio = (buttons, columns, choose) => {
    const pick = (i, focus) => {
      buttons.forEach((b, k) => { b.setAttribute("aria-checked", k === i); b.tabIndex = k === i ? 0 : -1; });
      if (focus) buttons[i].focus();
    };
    buttons.forEach((button, i) => {
      button.setAttribute("role", "radio");
      button.addEventListener("click", () => { pick(i); choose(i); });
      button.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
        if (!by) return;
        event.preventDefault();
        const to = i + by;
        if (to >= 0 && to < buttons.length) { pick(to, true); choose(to); }
      });
    });
    return pick;
  };
  const tokenNode = (prompt, i, colours, tag) => {
    const role = prompt.roles[i], node = make(tag, tag === "button" ? { type: "button" } : {}, prompt.tokens[i]);
    if (colours[role] && prompt.kept.includes(role)) { node.style.background = colours[role]; node.style.color = ink(colours[role]); }
    return node;
  };
  // heads by role, underlined in its colour, and the line that says so
  const underlined = (role, colours, text) => make("span", role ? { class: "member", style: `--role: ${colours[role] ?? "currentColor"}` } : {}, text);
  const roleKey = (members, colours) => {
    const roles = [...new Set(Object.values(members))];
    return roles.length ? ["Underlined heads:", ...roles.map((role) => underlined(role, colours, role))] : [];
  };
  const percent = (v) => `${v} %`;

  async function explorer(root, data) {
    const [P, C, S, L, H, R] = data.shape, cells = 64;
    const delta = await inflate(data.attention), attention = new Uint8Array(delta.length), run = S * L * H * R * cells, step = run / S;
    for (let p = 0; p < P; p++)                                     // stored as changes from the intact run, then from step to step
      for (let c = 0; c < C; c++)
        for (let i = 0; i < run; i++) {
          const at = (p * C + c) * run + i;
          let v = delta[at];
          if (i >= step) v += attention[at - step];
          if (c) { v += attention[p * C * run + i]; if (i >= step) v -= attention[p * C * run + i - step]; }
          attention[at] = v & 255;
        }
    const ramp = new Int8Array((await inflate(data.ramps)).buffer);
    const [viridis, diverging] = data.colours.map(bytes);
    const state = { p: 0, c: Math.min(1, C - 1), s: 0, h: data.head, r: data.role, cell: 0 };
    const map = (c, h = state.h) => {
      const start = ((((state.p * C + c) * S + state.s) * L * H + h) * R + state.r) * cells;
      return attention.subarray(start, start + cells);
    };
    const name = (h) => `L${Math.floor(h / H)}H${h % H}`;
    const strips = {};                                              // decoded when first shown
    const strip = (p, c) => (strips[`${p},${c}`] ??= picture(data.strips[p][c]));

    const chips = make("div", { class: "chips", role: "radiogroup", "aria-label": "word whose attention is shown" });
    const [promptLabel, promptSelect] = chooser("Prompt", data.prompts.map((p) => p.text), (i) => { state.p = i; words(); draw(); });
    const [changeLabel, changeSelect] = chooser("Change", data.conditions, (i) => { state.c = i; draw(); });
    const slider = make("input", { type: "range", min: 0, max: S - 1, value: 0, oninput: () => { state.s = +slider.value; draw(); } });
    const stepSaid = make("span", {});
    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
    const play = make("button", { type: "button", onclick: () => {
      if (timer) return stop();
      if (state.s === S - 1) state.s = -1;
      play.textContent = "Pause";
      timer = setInterval(() => { slider.value = ++state.s; draw(); if (state.s >= S - 1) stop(); }, 350);
    } }, "Play");
    const panels = make("div", { class: "panels" });
    const views = ["intact picture", "its attention", "changed picture", "its attention", "by place alone"].map((t) => panel(panels, t));
    const large = views[3].canvas;                                  // its cells can be read one by one
    large.tabIndex = 0;
    large.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -8, ArrowDown: 8 }[event.key];
      if (!by) return;
      event.preventDefault();
      state.cell = Math.max(0, Math.min(cells - 1, state.cell + by));
      tell(true);
    });
    large.addEventListener("pointerdown", (event) => {
      const box = large.getBoundingClientRect(), at = (v, size) => Math.max(0, Math.min(7, Math.floor((8 * v) / size)));
      state.cell = 8 * at(event.clientY - box.top, box.height) + at(event.clientX - box.left, box.width);
      tell(true);
    });
    const heads = make("div", { class: "heads", role: "radiogroup", "aria-label": "head", style: `grid-template-columns: repeat(${H}, 1fr)` });
    const buttons = Array.from({ length: L * H }, (_, h) => {
      const member = data.members[name(h)], label = underlined(member, data.memberColours, name(h));
      const button = make("button", { type: "button", title: member ? `${member} head` : null }, make("canvas", { "aria-hidden": "true" }), label);
      heads.append(button);
      return button;
    });
    const pickHead = radio(buttons, H, (h) => { state.h = h; draw(); });
    const said = make("output", { class: "said", "aria-live": "polite" });

    function words() {
      const prompt = { ...data.prompts[state.p], kept: data.roles };
      const nodes = prompt.tokens.map((_, i) => tokenNode(prompt, i, data.roleColours, prompt.kept.includes(prompt.roles[i]) ? "button" : "span"));
      chips.replaceChildren(...nodes);
      const choices = nodes.filter((n) => n.tagName === "BUTTON"), roles = prompt.roles.filter((r) => data.roles.includes(r));
      const mark = radio(choices, choices.length, (i) => { state.r = data.roles.indexOf(roles[i]); draw(); });
      mark(Math.max(0, roles.indexOf(data.roles[state.r])));
    }
    function tell(cell) {
      const values = map(state.c), top = Math.max(...values), at = values.indexOf(top), mean = values.reduce((a, b) => a + b, 0) / cells;
      const prompt = data.prompts[state.p], word = prompt.tokens.filter((_, i) => prompt.roles[i] === data.roles[state.r]).join(" ");
      const place = (i) => `row ${Math.floor(i / 8) + 1}, column ${(i % 8) + 1}`, member = data.members[name(state.h)];
      said.textContent = `${name(state.h)}${member ? ` (${member} head)` : ""}, step ${state.s}, to "${word}": mean ${mean.toFixed(1)} %, ` +
        `most ${percent(top)} at ${place(at)}` + (cell ? `; ${percent(values[state.cell])} at ${place(state.cell)}.` : ".");
    }
    async function draw() {
      const { p, c, s } = state, prompt = data.prompts[p];
      stepSaid.textContent = `${s} (0 to ${S - 1})`;
      slider.setAttribute("aria-valuetext", stepSaid.textContent);
      let top = 1;
      for (let h = 0; h < L * H; h++) top = Math.max(top, ...map(c, h));
      buttons.forEach((button, h) => {
        drawMap(button.firstChild, map(c, h), 0, top, viridis);
        const values = map(c, h);
        button.setAttribute("aria-label", `${name(h)}, mean ${(values.reduce((a, b) => a + b, 0) / cells).toFixed(0)} %`);
      });
      const both = Math.max(1, ...map(0), ...map(c)), scale = `dark 0, bright ${both} %`;
      drawMap(views[1].canvas, map(0), 0, both, viridis);
      drawMap(views[3].canvas, map(c), 0, both, viridis);
      views[1].say(`${name(state.h)} in the intact run (${scale})`);
      views[3].say(`${name(state.h)}, ${data.conditions[c]} (${scale})`);
      const start = ((p * L * H + state.h) * R + state.r) * cells, drawn = ramp.subarray(start, start + cells), unit = data.rampUnit;
      const limit = Math.max(1, ...drawn.map(Math.abs));
      drawMap(views[4].canvas, drawn, -limit, limit, diverging);
      views[4].say(`${name(state.h)} before there is a picture: logit from place alone, orange up to ${(limit * unit).toFixed(1)}, purple down to -${(limit * unit).toFixed(1)}`);
      tell(false);
      const [one, two] = await Promise.all([strip(p, 0), strip(p, c)]);
      if (p !== state.p || c !== state.c || s !== state.s) return;  // a later change overtook this one
      drawFrame(views[0].canvas, one, s);
      drawFrame(views[2].canvas, two, s);
      views[0].say(`intact, as expected at step ${s}. In the end: ${prompt.outcomes[0]}`);
      views[2].say(`${data.conditions[c]}. In the end: ${prompt.outcomes[c]}`);
    }
    root.append(make("div", { class: "controls" }, promptLabel, changeLabel),
      make("div", { class: "controls" }, chips),
      make("div", { class: "controls" }, make("label", {}, "Step", slider), stepSaid, play), panels,
      make("p", { class: "title" }, "All heads at this step, under the change:"), heads,
      make("p", { class: "key" }, ...roleKey(data.members, data.memberColours)), said);
    changeSelect.selectedIndex = state.c;
    pickHead(state.h);
    words();
    await draw();
    root.dataset.ready = "true";
  }

  async function circuit(root, data) {
    const [viridis, diverging] = data.colours.map(bytes), state = { m: 0, k: 0, stage: 0 }, last = data.stages.length - 1;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;    // then a press is a stage, and nothing moves by itself
    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; play.textContent = calm ? "Next stage" : "Play"; };
    const go = (stage) => { stop(); state.stage = stage; draw(); };
    const advance = () => { state.stage = state.stage < last ? state.stage + 1 : 0; draw(); };
    const play = make("button", { type: "button", class: "play", onclick: () => {
      if (timer) return stop();
      if (calm || state.stage === last) advance();
      if (calm) return;
      play.textContent = "Pause";
      timer = setInterval(() => { advance(); if (state.stage === last) stop(); }, 1000 * data.seconds);
    } });
    const [modelLabel] = chooser("Mechanism", data.models.map((m) => m.title), (i) => { state.m = i; draw(); });
    const [promptLabel] = chooser("Prompt", data.models[0].runs.map((r) => r.text), (i) => { state.k = i; draw(); });
    const list = make("ol", { class: "stages", "aria-label": "stages" });
    const tabs = data.stages.map((title, i) => {
      const tab = make("button", { type: "button", onclick: () => go(i), onkeydown: (event) => {
        const to = i + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0);
        if (to === i || !tabs[to]) return;
        event.preventDefault();
        go(to); tabs[to].focus();
      } }, `${i + 1} ${title}`);
      list.append(make("li", {}, tab));
      return tab;
    });
    const body = make("div", {}), text = make("p", { class: "said", "aria-live": "polite" });
    async function draw() {
      const model = data.models[state.m], run = model.runs[state.k], stage = run.stages[state.stage];
      tabs.forEach((tab, i) => (i === state.stage ? tab.setAttribute("aria-current", "step") : tab.removeAttribute("aria-current")));
      text.textContent = stage.text;
      const chips = make("div", { class: "chips" }), panels = make("div", { class: "panels" });
      const prompt = { ...run, kept: stage.roles };
      run.tokens.forEach((_, i) => {
        const node = tokenNode(prompt, i, data.roleColours, "span");
        if (stage.roles.includes(run.roles[i])) node.classList.add("on");
        chips.append(node);
      });
      const strip = stage.strip ? await picture(stage.strip) : null;
      if (stage !== data.models[state.m].runs[state.k].stages[state.stage]) return;
      for (const [i, shown] of stage.maps.entries()) {
        const { canvas, say } = panel(panels, shown.label);
        if (strip) drawFrame(canvas, strip, i);
        else {
          const signed = shown.low < 0;
          drawMap(canvas, shown.values, shown.low, shown.high, signed ? diverging : viridis);
          say(`${shown.label} (${signed ? "purple" : "dark"} ${shown.low}${shown.unit}, ${signed ? "orange" : "bright"} ${shown.high}${shown.unit})`);
        }
      }
      body.replaceChildren(chips, panels);
    }
    stop();
    root.append(make("div", { class: "controls" }, play, ...(data.models.length > 1 ? [modelLabel] : []), promptLabel), list, text, body);
    await draw();
    root.dataset.ready = "true";
  }

  // a live model: nothing but a small index is loaded before it is asked for; the rest are scripts beside the page (package live)
  async function live(root, data) {
    const base = data.base ?? `${document.documentElement.dataset.content_root ?? ""}_static/live/`, loaded = new Set();
    const script = (name) => new Promise((done, fail) => {
      document.head.append(make("script", { src: base + name, onload: done, onerror: () => fail(new Error(`${name} could not be loaded`)) }));
    });
    const said = make("output", { class: "said", "aria-live": "polite" }), bar = make("progress", { "aria-label": "loaded", hidden: "" });
    root.append(said, bar);
    root.dataset.ready = "true";
    await script("index.js").catch(() => {});
    const index = globalThis.spatialCircuits?.index;
    if (!index) return said.append("The live model is a part of the built pages (make book); this page has none beside it.");
    if (index.reason) return said.append(`The live model was not built with this page: ${index.reason}`);
    const linked = new URLSearchParams(location.hash.startsWith("#live&") ? location.hash.slice(6) : ""), names = Object.keys(index.models);
    const first = [...index.code, ...index.models[names.includes(linked.get("model")) ? linked.get("model") : names[0]]];
    const size = (files) => files.reduce((sum, file) => sum + index.sizes[file], 0) / 1e6;
    async function load(files) {                                    // in order, those that are not there yet
      const missing = files.filter((file) => !loaded.has(file)), whole = size(missing);
      for (const [i, file] of missing.entries()) {
        bar.value = size(missing.slice(0, i)) / whole;
        said.textContent = `Loading ${file}: ${size(missing.slice(0, i)).toFixed(1)} of ${whole.toFixed(1)} MB.`;
        await script(file);
        loaded.add(file);
      }
    }
    const start = make("button", { type: "button", onclick: async () => {
      start.disabled = true;
      bar.hidden = false;
      try {
        await load(first);
        bar.hidden = true;
        await globalThis.spatialCircuits.start(root, data, { make, bytes, drawMap, panel, chooser, radio, ink, underlined, roleKey }, load);
      } catch (error) {
        said.textContent = `The live model could not start: ${error.message}`;
        start.disabled = false;
      }
    } }, `${linked.get("text") ? "Open the linked finding" : "Load the live model"} (${size(first).toFixed(1)} MB)`);
    root.prepend(start);
    if (linked.get("text")) start.scrollIntoView({ block: "center" });
  }

  const kinds = { explorer, circuit, live };
  for (const root of document.querySelectorAll(".sc:not([data-started])")) {
    root.dataset.started = "true";
    const data = JSON.parse(root.querySelector("script").textContent);
    kinds[data.kind](root, data).catch((error) => root.append(make("p", { role: "alert" }, `This figure could not start: ${error.message}`)));
  }
})();
