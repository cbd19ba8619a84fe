// Address: what is asked for as a link, and back. What a link says wrongly is left out and named, with what may stand there;
// so is what is typed wrongly into a field for a number.
(() => {
  const live = (globalThis.spatialCircuits ??= {});
  const KEYS = ["model", "beside", "text", "seed", "steps", "guidance", "heads", "hide", "relation", "graft", "head", "word", "step"];
  live.sites = { stream: "into the residual stream", relation: "into the relation word", shape2: "into shape 2's word" };
  live.limits = { seed: [0, 2 ** 32 - 1], steps: [1, 40], guidance: [-30, 30], times: [-4, 4] };

  live.toAddress = (s) => {
    const told = { model: s.model, text: s.text, seed: s.seed, steps: s.steps, guidance: s.guidance };
    if (s.beside) told.beside = s.beside;
    const heads = Object.entries(s.heads).map(([name, { how, by }]) => `${name}:${how === "scale" ? by : how}`);
    if (heads.length) told.heads = heads.join(" ");
    if (s.hidden.length) told.hide = s.hidden.join(" ");
    if (s.relation) told.relation = `${live.language.relations[s.relation.to]} ${s.relation.site} ${s.relation.times}`;
    if (s.graft) told.graft = `${s.graft.to} ${s.graft.from} ${s.graft.text}`;
    if (s.head) told.head = s.head;
    if (s.word !== null) told.word = s.word;
    if (s.step !== null) told.step = s.step;
    return `#live&${new URLSearchParams(told)}`;
  };

  // a number within limits, else null
  function number(text, [low, high]) {
    const value = Number(text);
    return text.trim() !== "" && value >= low && value <= high ? value : null;
  }
  function whole(text, limits) {
    const value = number(text, limits);
    return Number.isInteger(value) ? value : null;
  }
  const span = ([low, high]) => `${low} to ${high}`;
  const WHOLE = ["seed", "steps"];
  // how the number of a key of `live.limits` is read (null: it may not stand there), and what may stand there in words
  live.numeric = (key) => ({
    read: (text) => (WHOLE.includes(key) ? whole : number)(text, live.limits[key]),
    allowed: `a ${WHOLE.includes(key) ? "whole " : ""}number from ${span(live.limits[key])}`,
  });
  const parted = (text) => text.split(/\s+/).filter(Boolean);
  const clipped = (text) => (text.length > 80 ? `${text.slice(0, 80)}…` : text);
  // notes of what was wrong: note(key, value, what may stand there)
  const noting = (live.noting = (wrong) => (key, value, allowed) => wrong.push(`${key}=${clipped(String(value))}: ${allowed}.`));

  // {state, wrong: sentences}: what an address says; all else is as in `otherwise`
  live.fromAddress = (hash, otherwise, names) => {
    const said = new URLSearchParams(hash.replace(/^#live&?/, "")), { limits, sites } = live, { relations } = live.language;
    const state = { ...otherwise, heads: {}, hidden: [], relation: null, graft: null, beside: "", head: null, word: null, step: null };
    const wrong = [], note = noting(wrong);
    for (const key of said.keys()) if (!KEYS.includes(key)) note(key, said.get(key), `unknown; a link has ${KEYS.join(", ")}`);
    // `read` makes a value of the text, or null; `keep` takes it
    function take(key, read, allowed, keep = (value) => { state[key] = value; }) {
      if (!said.has(key)) return;
      const value = read(said.get(key));
      if (value === null) note(key, said.get(key), allowed);
      else keep(value);
    }
    const oneOf = (known) => (text) => (known.includes(text) ? text : null);
    take("model", oneOf(names), `choose from ${names.join(", ")}`);
    const others = names.filter((name) => name !== state.model);
    take("beside", oneOf(others), others.length ? `choose from ${others.join(", ")}` : "there is no other model");
    take("text", (text) => text, "");
    for (const key of ["seed", "steps", "guidance"]) take(key, live.numeric(key).read, live.numeric(key).allowed);
    for (const part of parted(said.get("heads") ?? "")) {
      const [, name, how] = /^(L\d+H\d+):(.+)$/.exec(part) ?? [], by = number(how ?? "", limits.times);
      if (how === "mean" || how === "zero") state.heads[name] = { how };
      else if (by !== null) state.heads[name] = { how: "scale", by };
      else note("heads", part, `a head, a colon, and mean, zero or ${live.numeric("times").allowed}, as in L0H0:mean`);
    }
    for (const part of parted(said.get("hide") ?? "")) {
      const token = whole(part, [0, Infinity]);
      if (token === null) note("hide", part, "the numbers of words, from 0, as in 0 3");
      else if (!state.hidden.includes(token)) state.hidden.push(token);
    }
    take("relation", (text) => {
      const [relation, site = "stream", said = "1", ...more] = parted(text), to = relations.indexOf(relation), times = number(said, limits.times);
      return to < 0 || !Object.hasOwn(sites, site) || times === null || more.length ? null : { to, site, times };
    }, `one of ${relations.join(", ")}; then ${Object.keys(sites).join(", ")}; then ${live.numeric("times").allowed}, as in below stream 1`);
    take("graft", (text) => {
      const [, to, from, other] = /^(\d+) (\d+) (.+)$/.exec(text) ?? [];
      return other === undefined ? null : { to: Number(to), from: Number(from), text: other };
    }, "the number of a word, the number of the word it is taken from, and that word's sentence");
    take("head", (text) => (/^L\d+H\d+$/.test(text) ? text : null), "a head, as in L0H0");
    take("word", (text) => whole(text, [0, Infinity]), "the number of a word, from 0");
    take("step", (text) => whole(text, [0, state.steps - 1]), `a whole number from 0 to ${state.steps - 1}`);
    return { state, wrong };
  };

  // Takes out of a state what its model or its sentence does not have, and returns sentences about it. The sentence itself
  // becomes that of `otherwise` where the model cannot read it.
  live.fit = async (model, state, otherwise) => {
    const wrong = [], note = noting(wrong);
    const told = await live.encode(model, state.text).catch((error) => {
      note("text", state.text, error.message.replace(/\.$/, ""));
      state.text = otherwise.text;
      return live.encode(model, state.text);
    });
    const { tokens, roles } = told, words = (list) => `choose from ${list.map((token, i) => `${i} (${token})`).join(", ")}`;
    const heads = `${model.name} has L0H0 to L${model.layers - 1}H${model.heads - 1}`;
    for (const name of Object.keys(state.heads).filter((name) => !live.hasHead(model, name))) {
      note("heads", name, heads);
      delete state.heads[name];
    }
    if (state.head !== null && !live.hasHead(model, state.head)) {
      note("head", state.head, heads);
      state.head = null;
    }
    for (const token of state.hidden.filter((t) => t >= tokens.length)) note("hide", token, words(tokens));
    state.hidden = state.hidden.filter((t) => t < tokens.length).sort((a, b) => a - b);
    if (state.hidden.length === tokens.length) {
      note("hide", state.hidden.join(" "), "that is all words; leave the model at least one");
      state.hidden = [];
    }
    if (state.word !== null && state.word >= tokens.length) {
      note("word", state.word, words(tokens));
      state.word = null;
    }
    const problem = state.relation && live.whyNot(model, state.text, roles, state.relation.site);
    if (problem) {
      note("relation", `${live.language.relations[state.relation.to]} ${state.relation.site}`, problem.replace(/\.$/, ""));
      state.relation = null;
    }
    if (state.graft) {
      const { to, from, text } = state.graft, wanted = `${to} ${from} ${text}`;
      const amiss = await live.encode(model, text).then((other) => {
        if (to >= tokens.length) return `the first number: ${words(tokens)}`;
        return from >= other.tokens.length ? `the second number: ${words(other.tokens)}` : "";
      }, (error) => error.message.replace(/\.$/, ""));
      if (amiss) {
        note("graft", wanted, amiss);
        state.graft = null;
      }
    }
    return wrong;
  };
})();
