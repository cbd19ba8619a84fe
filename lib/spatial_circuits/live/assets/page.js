// Page: the controls of a live model. What is asked for lies in `state` and in the address, so that a finding is a link; what was
// drawn lies in `runs`. `live.start` builds the figure; `kit` are the helpers of the book's other figures.
(() => {
  const live = (globalThis.spatialCircuits ??= {});
  const HOW = { "": "as it is", mean: "off: its mean instead", zero: "off: zeros instead", scale: "scaled" };
  const SAYS = { relation: "the relation word", shape2: "the second shape's word" };
  const KEPT_RUNS = 8;
  const pause = () => new Promise((done) => setTimeout(done));

  // --- the figure ---------------------------------------------------------------------------------------------------------

  live.start = async (root, data, kit, load) => {
    const { make, bytes, drawMap, panel, chooser, radio, ink, underlined, roleKey } = kit, { index, language, limits, sites: SITES } = live;
    const names = Object.keys(index.models), opened = {}, runs = new Map(), [viridis] = data.colours.map(bytes);
    const size = (name) => `${(index.models[name].reduce((sum, f) => sum + index.sizes[f], 0) / 1e6).toFixed(1)} MB`;
    const open = (name) => (opened[name] ??= load(index.models[name]).then(() => { say(`Making ${name} ready.`); return pause(); }).then(() => live.open(name)));
    const usual = { model: names[0], beside: "", text: data.prompt, seed: data.seed, steps: 14, guidance: 4.5 };
    // `wrong`: what the link, or what was typed last, says wrongly; `linked`: the link was not yet held against its model
    let state, wrong, linked, turn = 0, shown = [];
    function readAddress() {
      ({ state, wrong } = live.fromAddress(location.hash.startsWith("#live&") ? location.hash : "", usual, names));
      linked = true;
    }
    readAddress();

    live.shown = () => shown;

    // what stands on the page
    const said = make("output", { class: "said", "aria-live": "polite" }), say = (text) => { said.textContent = text; };
    const row = (...parts) => make("div", { class: "controls" }, ...parts.flat());
    const group = (name, ...parts) => make("fieldset", {}, make("legend", {}, name), ...parts);
    const field = (label, options, change) => { const input = make("input", { ...options, onchange: () => change(input.value) }); return [make("label", {}, label, input), input]; };
    const button = (label, press, options = {}) => make("button", { type: "button", onclick: press, ...options }, label);
    const set = (changes) => {
      if (!linked) wrong = [];                                        // it was read, and is of no account any more
      Object.assign(state, changes);
      return draw();
    };
    const leftOut = make("div", { class: "said", role: "status", hidden: "" });
    function complain() {
      leftOut.hidden = !wrong.length;
      leftOut.replaceChildren("Left out:", make("ul", {}, ...wrong.map((sentence) => make("li", {}, sentence))));
    }

    // a field for a number of `live.limits`: what may not stand there is named, and the field says again what it said
    const numeric = (label, key, step, now, change, name = () => label.toLowerCase()) => {
      const [min, max] = limits[key], { read, allowed } = live.numeric(key);
      const [wrap, input] = field(label, { type: "number", min, max, step, value: now() }, (text) => {
        const value = read(text);
        if (value !== null) return change(value);
        input.value = now();
        if (!linked) wrong = [];
        live.noting(wrong)(name(), text || "nothing", allowed);
        complain();
        leftOut.scrollIntoView({ block: "nearest" });
      });
      return [wrap, input];
    };

    const [modelLabel, modelSelect] = chooser("Model", names, (i) => set({ model: names[i], beside: state.beside === names[i] ? "" : state.beside, heads: {}, head: null, relation: null, hidden: [], graft: null, word: null }));
    const besides = () => ["", ...names.filter((n) => n !== state.model)];
    const [besideLabel, besideSelect] = chooser("Beside it", [], (i) => set({ beside: besides()[i] }));
    const sentence = make("input", { type: "text", class: "sentence", "aria-label": "sentence", autocomplete: "off", spellcheck: "false" });
    const form = make("form", { class: "controls", onsubmit: (event) => { event.preventDefault(); tell(sentence.value); } },
      make("label", { class: "wide" }, "Sentence", sentence), make("button", { type: "submit" }, "Draw"));
    const parts = [["colour 1", ["", ...language.colors]], ["shape 1", language.shapes], ["relation", language.phrases],
      ["colour 2", ["", ...language.colors]], ["shape 2", language.shapes]].map(([label, options]) =>
      make("select", { "aria-label": label, onchange: compose }, ...options.map((o) => make("option", {}, o))));
    const article = button("", () => tell(toggled(state.text)));
    const [seedLabel, seedInput] = numeric("Seed", "seed", 1, () => state.seed, (seed) => set({ seed }));
    const [stepsLabel, stepsInput] = numeric("Steps", "steps", 1, () => state.steps, (steps) => set({ steps, step: null }));
    const [guidanceLabel, guidanceInput] = numeric("Guidance", "guidance", 0.5, () => state.guidance, (guidance) => set({ guidance }));

    const reads = make("p", { class: "title" }), sides = make("div", { class: "sides" });
    const slider = make("input", { type: "range", min: 0, oninput: () => { state.step = +slider.value; show(); address(); } }), stepSaid = make("span", {});
    const chips = make("div", { class: "chips", role: "radiogroup", "aria-label": "word whose attention is shown" });
    const headsTitle = make("p", { class: "title" }), heads = make("div", { class: "heads", role: "radiogroup", "aria-label": "head" });
    const key = make("p", { class: "key" });
    let pickHead = () => {}, headButtons = [];
    const [howLabel, howSelect] = chooser("This head", Object.values(HOW), () => changeHead());
    const [byLabel, byInput] = numeric("times", "times", 0.25, () => state.heads[state.head]?.by ?? 0.5, () => changeHead(), () => `${state.head} times`);
    const changedHeads = make("span", { class: "chips" }), hiding = make("span", { class: "chips", role: "group", "aria-label": "words to hide" });
    const [relationLabel, relationSelect] = chooser("Write in", ["no other relation", ...language.relations.map((r) => r.replace("_", " "))], () => changeRelation());
    const [siteLabel, siteSelect] = chooser("where", Object.values(SITES), () => changeRelation());
    const [timesLabel, timesInput] = numeric("times", "times", 0.25, () => state.relation?.times ?? 1, () => changeRelation(), () => "relation times");
    const [toLabel, toSelect] = chooser("Embedding of", [], () => changeGraft());
    const [otherLabel, otherInput] = field("taken from the sentence", { type: "text", class: "sentence", spellcheck: "false" }, () => changeGraft());
    const [fromLabel, fromSelect] = chooser("its word", [], () => changeGraft());
    otherLabel.className = "wide";

    function compose() {
      const [c1, s1, phrase, c2, s2] = parts.map((p) => p.value);
      tell(`${c1} ${s1} is ${phrase} ${c2} ${s2}`.split(/\s+/).filter(Boolean).join(" "));
    }
    // the sentence with "the" before its second object, or without it if it is there
    function toggled(text) {
      const parsed = live.parse(text), end = parsed.spans.find((span) => span[2] === "relation")?.[1];
      if (end === undefined) return text;
      return /^\s+the\b/i.test(text.slice(end)) ? text.slice(0, end) + text.slice(end).replace(/^\s+the\b/i, "") : `${text.slice(0, end)} the${text.slice(end)}`;
    }
    function changeHead() {
      const how = Object.keys(HOW)[howSelect.selectedIndex], next = { ...state.heads };
      delete next[state.head];
      if (how) next[state.head] = how === "scale" ? { how, by: Number(byInput.value) } : { how };
      set({ heads: next });
    }
    function changeRelation() {
      const to = relationSelect.selectedIndex - 1;
      if (to < 0 && !state.relation) return say("Choose the relation that is written in.");
      set({ relation: to < 0 ? null : { to, site: Object.keys(SITES)[siteSelect.selectedIndex], times: Number(timesInput.value) } });
    }
    function changeGraft() {
      const text = otherInput.value.trim(), to = toSelect.selectedIndex - 1, same = state.graft?.text === text && state.graft.to === to;
      if (text && to >= 0) set({ graft: { to, from: same ? Math.max(0, fromSelect.selectedIndex) : to, text } });
      else if (state.graft) set({ graft: null });
      else if (to >= 0) say("Type the sentence that the embedding is taken from.");
      else if (text) say("Choose the word whose embedding is taken from that sentence.");
    }
    // another sentence: words that were chosen or hidden stay so, where they still stand in it
    function tell(text) {
      const [old, now] = [state.text, text].map((t) => t.trim().toLowerCase().split(/\s+/));
      const nth = (words, i) => words.slice(0, i + 1).filter((w) => w === words[i]).length;
      const first = /^(\[CLS\]|<s>)$/.test(shown[0]?.run.tokens[0]) ? 1 : 0;                       // tokens before the words
      const moved = (token) => { const to = token < first ? token : movedWord(token - first); return to < 0 || token < first ? to : to + first; };
      const movedWord = (i) => (i >= old.length ? i - old.length + now.length : now.findIndex((w, k) => w === old[i] && nth(now, k) === nth(old, i)));
      const word = state.word === null ? -1 : moved(state.word), to = state.graft ? moved(state.graft.to) : -1;
      set({ text, word: word < 0 ? null : word, hidden: state.hidden.map(moved).filter((i) => i >= 0), graft: to < 0 ? null : { ...state.graft, to } });
    }

    // --- drawing ------------------------------------------------------------------------------------------------------------

    const changed = () => Object.keys(state.heads).length || state.hidden.length || state.relation || state.graft;
    const changes = () => ({ heads: state.heads, hidden: state.hidden, relation: state.relation, graft: state.graft });
    // what was changed in a picture, which need not be what is asked for now
    function inWords({ changes, run }) {
      const heads = Object.entries(changes.heads).map(([name, { how, by }]) => (how === "scale" ? `${name} times ${by}` : `without ${name}`));
      const tokens = (run ?? shown[0].run).tokens, hidden = changes.hidden.filter((t) => t < tokens.length).map((t) => `“${tokens[t]}” hidden`);
      const relation = changes.relation ? [`${language.relations[changes.relation.to].replace("_", " ")} written ${SITES[changes.relation.site]}`] : [];
      const graft = changes.graft ? [`“${tokens[changes.graft.to]}” taken from “${changes.graft.text}”`] : [];
      return [...heads, ...hidden, ...relation, ...graft].join(", ") || "nothing changed";
    }
    // what is to be seen: pictures of one sentence and one noise, by model and change
    function wanted() {
      const base = { text: state.text, seed: state.seed, steps: state.steps, guidance: state.guidance };
      const list = [{ ...base, name: state.model, changes: {}, told: state.text }];
      if (changed()) list.push({ ...base, name: state.model, changes: changes(), told: state.relation ? null : state.text });
      if (state.beside) list.push({ ...base, name: state.beside, changes: {}, told: state.text });
      return list.map((side) => ({ ...side, key: JSON.stringify([side.name, base, side.changes]) }));
    }

    async function draw() {
      const mine = ++turn, began = performance.now();
      follow();
      address();
      complain();
      try {
        if (linked) {
          const model = await open(state.model);
          if (mine !== turn) return;
          linked = false;
          wrong.push(...(await live.fit(model, state, usual)));
          follow();
          address();
          complain();
        }
        const list = wanted(), problems = [];
        for (const name of new Set(list.map((side) => side.name))) {
          const sidesOf = list.filter((side) => side.name === name && !runs.has(side.key)), model = await open(name);
          if (mine !== turn) return;
          if (!sidesOf.length) continue;
          try {
            await sample(model, sidesOf, list, mine);
          } catch (error) {
            if (name === state.model) throw error;
            problems.push(error.message);
          }
          if (mine !== turn) return;
        }
        shown = list.map((side) => ({ ...side, model: null, run: runs.get(side.key) ?? null, problem: problems[0] }));
        for (const side of shown) side.model = await open(side.name);
        while (runs.size > KEPT_RUNS) runs.delete(runs.keys().next().value);
        await arrange();
        await show();
        const reading = shown.filter((side) => side.model.reads).map((side) => `${side.name} reads the relation from ${SAYS[side.model.reads]}.`);
        reads.textContent = [...new Set(reading)].join(" ");
        const seconds = ((performance.now() - began) / 1000).toFixed(1);
        say([...shown.map((side) => `${label(side)}: ${side.run ? `${side.run.outcome}.` : side.problem}`), ...new Set(shown.map((s) => s.run?.note).filter(Boolean)),
          problems.length ? "" : `Drawn in ${seconds} s.`].filter(Boolean).join(" "));
      } catch (error) {
        if (mine !== turn) return;
        say(`${error.message}${shown.length ? ` Shown is still: “${shown[0].text}”.` : ""}`);
        await show();                                                 // in place of a picture that was left half drawn
      } finally {
        if (mine === turn) root.dataset.drawn = mine;                 // what was asked for last is done
      }
    }
    async function sample(model, list, all, mine) {
      const rows = [], [side] = list;
      for (const side of list) rows.push(await live.prepare(model, side.text, side.changes));
      const views = frames(all), pictures = list.map((one) => views[all.indexOf(one)].picture);
      let sampling = 0, decoding = 0, last = performance.now();
      const found = await live.sample(model, rows, side, async (step, guesses) => {
        sampling += performance.now() - last;
        const start = performance.now();
        stepSaid.textContent = `${model.name}: ${step + 1} of ${side.steps} steps`;
        if (2 * decoding < sampling && step < side.steps - 1) {      // as many as there is time for
          for (const [i, guess] of guesses.entries()) {
            const drawn = await live.picture(model, guess);
            if (mine !== turn) return false;
            paint(pictures[i].canvas, drawn);
            pictures[i].say(`${model.name}: being drawn`);
          }
          decoding += performance.now() - start;
        }
        await pause();
        last = performance.now();
        return mine === turn;
      });
      if (!found) return;
      for (const [i, run] of found.entries()) {
        const side = list[i], told = side.told ?? live.restated(side.text, side.changes.relation.to);
        const picture = await live.picture(model, run.latents);
        run.pictures = { [side.steps - 1]: picture };
        run.outcome = live.outcome(live.verdict(picture.data, picture.width, told)) + (told === side.text ? "" : ` (“${told}”)`);
        runs.set(side.key, run);
      }
    }
    const paint = (canvas, picture) => { canvas.width = canvas.height = picture.width; canvas.getContext("2d").putImageData(picture, 0, 0); };
    const label = (side) => (Object.keys(side.changes).length ? `${side.name}, ${inWords(side)}` : `${side.name}, intact`);

    // a column for each side: its picture over the map of its head
    let columns = [];
    function frames(list) {
      if (columns.length !== list.length) {
        columns = list.map(() => {
          const box = make("div", { class: "side" }), picture = panel(box, "picture"), map = panel(box, "attention"), own = make("div", {});
          box.append(own);
          return { box, picture, map, own };
        });
        sides.replaceChildren(...columns.map((c) => c.box));
      }
      return columns;
    }

    // --- showing what was drawn ---------------------------------------------------------------------------------------------

    const stepShown = () => Math.min(state.step ?? Infinity, shown[0].steps - 1);
    // the head that looks most at a token, at the step that is shown
    const looking = (side, token) => {
      const { model, run } = side, means = Array.from({ length: model.layers * model.heads }, (_, h) => live.attention(model, run, stepShown(), h, token).reduce((a, b) => a + b, 0));
      return means.indexOf(Math.max(...means));
    };
    const headName = (model, h) => `L${Math.floor(h / model.heads)}H${h % model.heads}`;
    const roleToken = (side) => Math.max(0, side.run.roles.indexOf(side.model.reads ?? "relation"));
    // the word chosen, or the one of the relation while what is asked for is not drawn
    const wordShown = () => (state.word !== null && state.word < shown[0].run.tokens.length ? state.word : roleToken(shown[0]));
    // the token of another model's encoder that stands for it
    const tokenOf = (side) => {
      const { tokens, roles } = shown[0].run, own = side.run, word = wordShown();
      if (own.tokens[word] === tokens[word]) return word;
      return Math.max(0, own.roles.indexOf(roles[word]));
    };
    const headOf = (side) => side.head ?? (state.head !== null && live.hasHead(side.model, state.head) ? live.headIndex(side.model, state.head) : looking(side, tokenOf(side)));

    // after a drawing: chips, heads and menus of the model and sentence at hand
    async function arrange() {
      const [main] = shown, { model, run } = main;
      if (state.word === null || state.word >= run.tokens.length) state.word = roleToken(main);
      if (state.head === null || !live.hasHead(model, state.head)) state.head = headName(model, looking(main, state.word));
      slider.max = state.steps - 1;
      const nodes = run.tokens.map((token, t) => {
        const colour = data.roleColours[run.roles[t]], node = button(token, () => {});
        if (colour) { node.style.background = colour; node.style.color = ink(colour); }
        return node;
      });
      chips.replaceChildren(...nodes);
      radio(nodes, nodes.length, (t) => { state.word = t; show(); address(); })(state.word);
      hiding.replaceChildren(...run.tokens.map((token, t) => button(token, () => {
        set({ hidden: state.hidden.includes(t) ? state.hidden.filter((h) => h !== t) : [...state.hidden, t].sort((a, b) => a - b) });
      }, { "aria-pressed": state.hidden.includes(t) })));
      if (heads.dataset.model !== model.name) {
        heads.dataset.model = model.name;
        heads.style.gridTemplateColumns = `repeat(${model.heads}, 1fr)`;
        headButtons = Array.from({ length: model.layers * model.heads }, (_, h) => {
          const member = model.members[headName(model, h)], name = underlined(member, data.memberColours, "");
          return make("button", { type: "button", title: member ? `${member} head` : null }, make("canvas", { "aria-hidden": "true" }), name);
        });
        heads.replaceChildren(...headButtons);
        key.replaceChildren(...roleKey(model.members, data.memberColours));
        pickHead = radio(headButtons, model.heads, (h) => { state.head = headName(model, h); follow(); show(); address(); });
      }
      pickHead(live.headIndex(model, state.head));
      const tokens = run.tokens.map((t, i) => `${i + 1} ${t}`);
      toSelect.replaceChildren(...["no word", ...tokens].map((t) => make("option", {}, t)));
      const other = state.graft ? (await live.encode(model, state.graft.text)).tokens : [];
      fromSelect.replaceChildren(...other.map((t, i) => make("option", {}, `${i + 1} ${t}`)));
      if (!otherInput.value && live.parse(state.text).relation !== null) otherInput.value = live.restated(state.text, language.reverse[live.parse(state.text).relation]);
      for (const [i, side] of shown.entries()) {
        const box = frames(shown)[i].own, foreign = side.model !== model && side.run;
        box.replaceChildren();
        if (!foreign) continue;
        side.head = looking(side, roleToken(side));
        const all = Array.from({ length: side.model.layers * side.model.heads }, (_, h) => headName(side.model, h));
        const [headLabel, headSelect] = chooser("its head", all, (h) => { side.head = h; show(); });
        headSelect.selectedIndex = side.head;
        box.append(headLabel);
      }
      follow();
    }

    // controls say what the state says
    function follow() {
      const parsed = live.parse(state.text), { shapes, colors, phrases } = language;
      modelSelect.selectedIndex = names.indexOf(state.model);
      besideSelect.replaceChildren(...besides().map((n) => make("option", {}, n ? `${n} (${opened[n] ? "loaded" : size(n)})` : "nothing")));
      besideSelect.selectedIndex = besides().indexOf(state.beside);
      sentence.value = state.text;
      [colors[parsed.color[0]] ?? "", shapes[parsed.shape[0]], phrases[parsed.phrase], colors[parsed.color[1]] ?? "", shapes[parsed.shape[1]]]
        .forEach((value, i) => { if (value !== undefined) parts[i].value = value; });
      article.disabled = parsed.relation === null;
      article.textContent = toggled(state.text).length < state.text.length ? "Take “the” away" : "Add “the”";
      [seedInput.value, stepsInput.value, guidanceInput.value] = [state.seed, state.steps, state.guidance];
      const own = state.heads[state.head];
      howLabel.firstChild.textContent = state.head ?? "This head";
      howSelect.selectedIndex = Object.keys(HOW).indexOf(own?.how ?? "");
      byLabel.hidden = own?.how !== "scale";
      if (own?.how === "scale") byInput.value = own.by;
      changedHeads.replaceChildren(...Object.keys(state.heads).map((name) => button(`${name} ×`, () => {
        const next = { ...state.heads };
        delete next[name];
        set({ heads: next });
      }, { "aria-label": `put ${name} back` })));
      relationSelect.selectedIndex = state.relation ? state.relation.to + 1 : 0;
      if (state.relation) { siteSelect.selectedIndex = Object.keys(SITES).indexOf(state.relation.site); timesInput.value = state.relation.times; }
      toSelect.selectedIndex = state.graft ? state.graft.to + 1 : 0;
      if (state.graft) { otherInput.value = state.graft.text; fromSelect.selectedIndex = state.graft.from; }
      fromLabel.hidden = !fromSelect.length;
      undo.disabled = !changed();
    }

    async function show() {
      if (!shown.length) return;
      const last = shown[0].steps - 1, step = stepShown(), mine = turn, place = (i) => `row ${Math.floor(i / 8) + 1}, column ${(i % 8) + 1}`;
      slider.value = step;
      stepSaid.textContent = `${step} (0 to ${last})`;
      slider.setAttribute("aria-valuetext", stepSaid.textContent);
      const seen = shown.map((side) => side.run && live.attention(side.model, side.run, step, headOf(side), tokenOf(side)));
      const top = Math.max(0.01, ...seen.filter(Boolean).flatMap((values) => [...values]));
      for (const [i, side] of shown.entries()) {
        const { picture, map } = frames(shown)[i], values = seen[i], { run, model } = side;
        if (!values) { picture.say(`${label(side)}: ${side.problem}`); map.say(""); continue; }
        drawMap(map.canvas, values, 0, top, viridis);
        const most = Math.max(...values), name = headName(model, headOf(side));
        map.say(`${name} to “${run.tokens[tokenOf(side)]}”: most ${Math.round(100 * most)} % at ${place(values.indexOf(most))} (bright is ${Math.round(100 * top)} %)`);
        const drawn = (run.pictures[step] ??= await live.picture(model, run.guesses[step]));
        if (mine !== turn) return;
        paint(picture.canvas, drawn);
        picture.say(`${label(side)}${step === last ? "" : `, as expected at step ${step}. In the end`}: ${run.outcome}`);
      }
      const side = shown[1]?.name === shown[0].name ? shown[1] : shown[0], maps = headButtons.map((_, h) => live.attention(side.model, side.run, step, h, tokenOf(side)));
      const brightest = Math.max(...maps.flatMap((m) => [...m]));
      headsTitle.textContent = `All heads of ${label(side)}, at this step, to “${side.run.tokens[tokenOf(side)]}”. Choose one to see and to change it:`;
      headButtons.forEach((b, h) => {
        const name = headName(side.model, h), how = side.changes.heads?.[name], mean = maps[h].reduce((a, v) => a + v, 0) / maps[h].length;
        drawMap(b.firstChild, maps[h], 0, brightest, viridis);
        b.lastChild.textContent = how ? `${name} ${how.how === "scale" ? `×${how.by}` : "off"}` : name;
        b.setAttribute("aria-label", `${b.lastChild.textContent}, mean ${Math.round(100 * mean)} %`);
      });
    }

    // --- keeping --------------------------------------------------------------------------------------------------------------

    function address() {
      history.replaceState(null, "", live.toAddress(state));
    }
    const undo = button("Undo all changes", () => set({ heads: {}, hidden: [], relation: null, graft: null }));
    const copy = button("Copy link", async () => {
      try {
        await navigator.clipboard.writeText(location.href);
        say("The link is copied. It opens this sentence, noise and change.");
      } catch {
        say("The page's address is the link: copy it from the address bar.");
      }
    });
    const save = button("Save picture", () => {
      if (!shown.length || root.dataset.drawn !== `${turn}`) return say("No picture is drawn yet; save it when it is.");
      frames(shown);
      const side = 256, gap = 16, wide = columns.length * (side + gap) + gap, canvas = make("canvas", { width: wide, height: side + 3 * gap + 60 }), context = canvas.getContext("2d");
      context.fillStyle = "white";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.imageSmoothingEnabled = false;
      context.fillStyle = "black";
      context.font = "15px sans-serif";
      context.fillText(`${shown[0].text} (seed ${shown[0].seed})`, gap, 24, wide - 2 * gap);
      columns.forEach((column, i) => {
        const x = gap + i * (side + gap);
        context.drawImage(column.picture.canvas, x, 2 * gap + 4, side, side);
        context.font = "12px sans-serif";
        context.fillText(label(shown[i]), x, side + 3 * gap + 12, side);
        context.fillText(shown[i].run?.outcome ?? "", x, side + 3 * gap + 30, side);
      });
      canvas.toBlob((blob) => {
        const link = make("a", { href: URL.createObjectURL(blob), download: `${shown[0].text.replace(/\W+/g, "-").slice(0, 80)}-${shown[0].seed}.png` });
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 1000);
      });
    });
    addEventListener("hashchange", () => {
      if (!location.hash.startsWith("#live&")) return;
      readAddress();
      draw();
    });

    root.replaceChildren(form, row(make("span", {}, "or compose:"), parts, article), row(modelLabel, besideLabel),
      row(seedLabel, button("Next seed", () => set({ seed: (state.seed + 1) % (limits.seed[1] + 1) })), stepsLabel, guidanceLabel), reads, leftOut, said, sides,
      row(make("label", {}, "Step", slider), stepSaid), row(make("span", {}, "Attention to"), chips), headsTitle, heads, key,
      group("Change a head", row(howLabel, byLabel, changedHeads)), group("Hide words", row(hiding)),
      group("Another relation", row(relationLabel, siteLabel, timesLabel)), group("Another word's embedding", row(toLabel, otherLabel, fromLabel)),
      row(undo, copy, save));
    follow();
    await draw();
  };
})();
