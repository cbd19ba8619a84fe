// Engine: a model of the book at work in a page: sentence to embeddings, embeddings and noise to latents (DPM-Solver++ 2M with
// classifier-free guidance, as model/sampler.py), latents to a picture. Heavy work is done by onnxruntime-web.
(() => {
  const live = (globalThis.spatialCircuits ??= {});
  const CHANNELS = 4, SIDE = 16, CELLS = CHANNELS * SIDE * SIDE, PICTURE = 128, HIDDEN = 0, SHOWN = 1;

  async function inflate(text) {
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Uint8Array(await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());
  }
  // fp16 to numbers; there is no infinity in it
  const widened = (halves) => {
    const table = Float32Array.from({ length: 65536 }, (_, h) => {
      const exponent = (h >> 10) & 31, fraction = (h & 1023) / 1024;
      return (h & 0x8000 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
    });
    return Float32Array.from(halves, (h) => table[h]);
  };
  async function array({ shape, type, data }) {
    const { buffer } = await inflate(data);
    return { shape, data: type === "float16" ? widened(new Uint16Array(buffer)) : new Float32Array(buffer) };
  }

  // once: the runtime, from the files that were loaded, since a page that is a file may fetch nothing
  let started = null;
  const startRuntime = () => (started ??= (async () => {
    const { wasm, module } = live.files.runtime;
    const script = new Blob([await inflate(module)], { type: "text/javascript" });
    Object.assign(ort.env.wasm, { numThreads: 1, proxy: false, wasmBinary: await inflate(wasm), wasmPaths: { mjs: URL.createObjectURL(script) } });
    ort.env.logLevel = "error";
    delete live.files.runtime;
  })());
  async function session(graph) {
    await startRuntime();
    const [model, weights] = await Promise.all([inflate(graph.onnx), array(graph.weights)]);
    return ort.InferenceSession.create(model, { executionProviders: ["wasm"], graphOptimizationLevel: "disabled",   // it costs more than it brings
      externalData: weights.data.length ? [{ path: "weights", data: new Uint8Array(weights.data.buffer) }] : [] });
  }
  const tensor = (data, shape) => new ort.Tensor("float32", data, shape);

  const decoders = {};
  // a loaded model file and its decoder's, made ready: everything that `live.sample` and `live.encode` ask for
  live.open = async (name) => {
    const file = live.files[name], { text } = file, model = { ...file.about, name, text };
    decoders[file.about.decoder] ??= session(live.files[file.about.decoder].graph);
    model.decode = await decoders[file.about.decoder];
    model.run = await session(file.graph);
    model.arrays = Object.fromEntries(await Promise.all(Object.entries(file.arrays).map(async ([key, packed]) => [key, await array(packed)])));
    if (text.graph) model.embed = await session(text.graph);
    delete live.files[name];
    return model;
  };

  // --- text ---------------------------------------------------------------------------------------------------------------

  const distance = (a, b) => {                                       // letters to insert, drop or change (Levenshtein)
    let row = Array.from({ length: b.length + 1 }, (_, i) => i);
    for (let i = 1; i <= a.length; i++) {
      const next = [i];
      for (let j = 1; j <= b.length; j++) next[j] = Math.min(next[j - 1] + 1, row[j] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
      row = next;
    }
    return row[b.length];
  };
  const short = (said, most) => (said.length > most ? `${said.slice(0, most)}…` : said);      // so that a pasted page is no burden
  const nearest = (said, known, count = 3) => known.map((k) => [distance(said, k), k]).sort((a, b) => a[0] - b[0]).slice(0, count).map((x) => x[1]);

  // a sentence as the model's encoder reads it: {tokens, roles, embeddings [T * D], dim, note}; throws what a reader should know
  live.encode = async (model, sentence) => {
    const { text } = model;
    if (text.kind === "table") return fromTable(model, sentence);
    const parsed = live.parse(sentence), special = text.special, words = [...sentence.matchAll(/\S+/g)];
    if (words.length >= text.maxTokens) throw new Error(`The sentence has ${words.length} words; ${model.name} reads at most ${text.maxTokens - 1}.`);
    const strange = words.map((m) => m[0].toLowerCase()).find((w) => !text.vocabulary.includes(w, special));
    const said = strange && `${model.name} has no word “${short(strange, 40)}”; nearest known: ${nearest(short(strange, 40), text.vocabulary.slice(special)).join(", ")}.`;
    if (strange && text.unknown === null) throw new Error(said);
    const ids = words.map((m) => { const at = text.vocabulary.indexOf(m[0].toLowerCase(), special); return at < 0 ? text.unknown : at; });
    ids.push(text.end);
    const roles = [...words.map((m) => live.role(parsed, m.index, m.index + m[0].length)), "end"];
    const embeddings = text.graph ? await fromGraph(model, ids) : fromWords(model, ids, roles, parsed);
    return { tokens: ids.map((id) => text.vocabulary[id]), roles, embeddings, dim: model.dim, note: strange ? `${said} It reads “${text.vocabulary[text.unknown]}” there.` : "" };
  };

  async function fromGraph(model, ids) {
    const { embeddings } = await model.embed.run({ ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]) });
    return Float32Array.from(embeddings.data);
  }

  // a row of the table for each word, plus the code of its place; with a dose of the relation on the second shape's word
  function fromWords({ arrays, dim }, ids, roles, parsed) {
    const out = new Float32Array(ids.length * dim), norm = (v) => Math.hypot(...v);
    ids.forEach((id, t) => {
      for (let d = 0; d < dim; d++) out[t * dim + d] = arrays.table.data[id * dim + d] + arrays.position.data[t * dim + d];
      if (!arrays.dose || roles[t] !== "shape2" || parsed.relation === null) return;
      const own = out.subarray(t * dim, (t + 1) * dim), before = norm(own), dose = arrays.dose.data;
      for (let d = 0; d < dim; d++) own[d] += dose[parsed.relation * dim + d];
      const after = norm(own);
      for (let d = 0; d < dim; d++) own[d] *= before / after;
    });
    return out;
  }

  // a sentence without what a table's encoder does not see
  function plain({ uncased, unspaced }, sentence) {
    const said = unspaced ? sentence.trim().replace(/\s+/g, " ") : sentence.trim();
    return uncased ? said.toLowerCase() : said;
  }
  const quoted = (sentences) => sentences.map((s) => `“${s}”`);
  function unknown(name, text, sentence) {
    const known = new Set(text.sentences.filter(Boolean).map((s) => plain(text, s)));
    const wordings = [...new Set(text.wordings.map((s) => plain(text, s)))].filter((s) => known.has(s));
    const ignored = [...(text.uncased ? ["capitals"] : []), ...(text.unspaced ? ["doubled spaces"] : [])];
    return `${name}'s encoder is too large for a page, so it reads here ${known.size} sentences alone: the training captions, with colours or without, ` +
      `and some of them in other words, as in ${quoted(wordings).join(", ")}. ${ignored.length ? `It takes no notice of ${ignored.join(" and ")}. ` : ""}` +
      `Nearest to yours: ${quoted(nearest(short(plain(text, sentence), 200), [...known], 2)).join(" or ")}.`;
  }
  function fromTable({ name, text, arrays, dim }, sentence) {
    text.rows ??= new Map(text.sentences.map((known, row) => [plain(text, known), row]));
    const row = text.rows.get(plain(text, sentence));
    if (row === undefined) throw new Error(unknown(name, text, sentence));
    const [start, end] = [text.starts[row], text.starts[row + 1]];
    return { tokens: text.tokens[row], roles: text.roles[row], embeddings: arrays.sentences.data.slice(start * dim, end * dim), dim,
      note: `${name}'s encoder is too large for a page; its embeddings come from a table of ${text.sentences.length - 1} sentences.` };
  }

  // --- changes ------------------------------------------------------------------------------------------------------------

  const sourceOf = (site) => (site === "stream" ? "vectors" : `effects_${site}`);
  // why another relation cannot be written into a sentence there; "" if it can
  live.whyNot = (model, sentence, roles, site) => {
    if (live.parse(sentence).relation === null) return "The sentence says no relation, so there is none to exchange.";
    if (!model.arrays[sourceOf(site)]) return `No relation heads are known for ${model.name}; write the relation into a word instead.`;
    return site === "stream" || roles.includes(site) ? "" : `The sentence holds no word of role ${site}.`;
  };

  // What a row of the batch is told. changes: {heads: {L0H0: {how: "mean" | "zero" | "scale", by}}, hidden: [token numbers],
  // relation: {to, site, times} or null, graft: {to, text, from} or null}
  live.prepare = async (model, sentence, changes = {}) => {
    const told = await live.encode(model, sentence), row = { ...told, embeddings: told.embeddings.slice(), heads: changes.heads ?? {}, hidden: changes.hidden ?? [], added: null };
    const { dim, arrays } = model, count = row.tokens.length, strange = Object.keys(row.heads).find((name) => !live.hasHead(model, name));
    if (strange) throw new Error(`${model.name} has no head ${strange}; it has L0H0 to L${model.layers - 1}H${model.heads - 1}.`);
    row.hidden = row.hidden.filter((t) => t < count);
    if (row.hidden.length >= count) throw new Error("All words are hidden; leave the model at least one.");
    if (changes.graft) {
      const other = await live.encode(model, changes.graft.text), { to, from } = changes.graft;
      if (to >= count || from >= other.tokens.length) throw new Error(`The embedding cannot be exchanged: one of the sentences has no word ${Math.max(to, from) + 1}.`);
      row.embeddings.set(other.embeddings.subarray(from * dim, (from + 1) * dim), to * dim);
    }
    if (changes.relation) {
      const own = live.parse(sentence).relation, { to, site, times } = changes.relation, problem = live.whyNot(model, sentence, row.roles, site);
      if (problem) throw new Error(problem);
      const source = arrays[sourceOf(site)];
      const size = source.data.length / source.shape[0], part = (r) => source.data.subarray(r * size, (r + 1) * size);
      const [wanted, old] = [part(to), part(own)];
      if (site === "stream") row.added = wanted.map((v, i) => times * (v - old[i]));
      else row.roles.forEach((role, t) => { if (role === site) for (let d = 0; d < dim; d++) row.embeddings[t * dim + d] += times * wanted[d] - old[d]; });
    }
    return row;
  };

  // --- sampling -----------------------------------------------------------------------------------------------------------

  // the inputs that stay the same over all steps; the rows of the null sentence come first
  function inputs(model, empty, rows) {
    const { layers, heads, places, headDim, width, dim } = model, all = [...rows.map(() => empty), ...rows], B = all.length;
    const T = Math.max(...all.map((r) => r.tokens.length)), text = new Float32Array(B * T * dim), mask = new Float32Array(B * T).fill(HIDDEN);
    const scale = new Float32Array(B * layers * heads).fill(1), added = new Float32Array(B * places * width);
    all.forEach((row, b) => {
      text.set(row.embeddings, b * T * dim);
      mask.fill(SHOWN, b * T, b * T + row.tokens.length);
      for (const t of row.hidden ?? []) mask[b * T + t] = HIDDEN;
      if (row.added) added.set(row.added, b * places * width);
      for (const [name, { how, by }] of Object.entries(row.heads ?? {})) scale[b * layers * heads + headIndex(model, name)] = how === "scale" ? by : 0;
    });
    const mean = new Float32Array(B * layers * heads * places * headDim);
    return { B, T, all, mean, fixed: { text: tensor(text, [B, T, dim]), mask: tensor(mask, [B, T]), scale: tensor(scale, [B, layers, heads]), added: tensor(added, [B, places, width]) } };
  }
  const headIndex = ({ heads }, name) => { const [layer, head] = name.match(/\d+/g).map(Number); return layer * heads + head; };
  live.headIndex = headIndex;
  live.hasHead = ({ layers, heads }, name) => { const [layer, head] = name.match(/\d+/g).map(Number); return layer < layers && head < heads; };

  // means of heads that give way to their mean, of the recorded step whose time is nearest
  function fillMeans(model, all, mean, time) {
    const recorded = model.arrays.mean, size = recorded.shape[3] * recorded.shape[4], perStep = recorded.data.length / recorded.shape[0];
    const times = model.schedules[recorded.shape[0] - 1].times, gap = (i) => Math.abs(times[i] - time);
    const step = times.reduce((best, _, i) => (gap(i) < gap(best) ? i : best), 0), perRow = model.layers * model.heads * size;
    all.forEach((row, b) => {
      for (const [name, { how }] of Object.entries(row.heads ?? {})) {
        const at = headIndex(model, name) * size;
        if (how === "mean") mean.set(recorded.data.subarray(step * perStep + at, step * perStep + at + size), b * perRow + at);
      }
    });
  }

  // Pictures from noise: rows of `live.prepare`, drawn together from the noise of one seed. After each step `watch(step, guesses)`
  // may wait, and returns false to stop. Returns for each row {latents, guesses [steps], patterns [steps] of L x H x N x T, T}.
  live.sample = async (model, rows, { seed, steps, guidance }, watch = async () => true) => {
    const empty = await live.encode(model, ""), { B, T, all, mean, fixed } = inputs(model, empty, rows);
    const { times, alpha, sigma } = model.schedules[steps - 1], lambda = (i) => Math.log(alpha[i] / sigma[i]);
    const { layers, heads, places } = model, meanShape = [B, layers, heads, places, model.headDim], perRow = layers * heads * places * T;
    const out = rows.map(() => ({ guesses: [], patterns: [], T })), start = live.noise(seed, CELLS);
    let latents = rows.map(() => Float64Array.from(start)), before = null;
    for (let i = 0; i < steps; i++) {
      const x = new Float32Array(B * CELLS);
      for (let b = 0; b < B; b++) x.set(latents[b % rows.length], b * CELLS);
      fillMeans(model, all, mean, times[i]);
      const { prediction, patterns } = await model.run.run({ ...fixed, latents: tensor(x, [B, CHANNELS, SIDE, SIDE]),
        timestep: tensor(new Float32Array(B).fill(times[i]), [B]), mean: tensor(mean, meanShape) });
      const p = prediction.data;
      const guess = latents.map((now, r) => now.map((value, k) => {
        const none = p[r * CELLS + k], told = p[(rows.length + r) * CELLS + k], output = none + guidance * (told - none);
        if (model.prediction === "sample") return output;
        return model.prediction === "flow_prediction" ? value - sigma[i] * output : (value - sigma[i] * output) / alpha[i];
      }));
      const last = i === steps - 1, h = last ? Infinity : lambda(i + 1) - lambda(i), decay = alpha[i + 1] * (Math.exp(-h) - 1);
      latents = latents.map((now, r) => now.map((value, k) => {
        const first = (sigma[i + 1] / sigma[i]) * value - decay * guess[r][k];
        if (!before || last) return first;                           // of first order at both ends
        const ratio = (lambda(i) - lambda(i - 1)) / h;
        return first - (0.5 * decay * (guess[r][k] - before[r][k])) / ratio;
      }));
      before = guess;
      rows.forEach((_, r) => {
        out[r].guesses.push(guess[r]);
        out[r].patterns.push(patterns.data.slice((rows.length + r) * perRow, (rows.length + r + 1) * perRow));
      });
      if (!(await watch(i, guess))) return null;
    }
    rows.forEach((row, r) => Object.assign(out[r], { latents: latents[r], tokens: row.tokens, roles: row.roles, note: row.note }));
    return out;
  };

  // latents as an ImageData of 128 x 128
  live.picture = async (model, latents) => {
    const { pictures } = await model.decode.run({ latents: tensor(Float32Array.from(latents), [1, CHANNELS, SIDE, SIDE]) });
    const image = new ImageData(PICTURE, PICTURE), plane = PICTURE * PICTURE;
    for (let i = 0; i < plane; i++) image.data.set([pictures.data[i], pictures.data[plane + i], pictures.data[2 * plane + i], 255], 4 * i);
    return image;
  };

  // where a head looks: its attention to one token over the grid, 0..1, places row by row
  live.attention = (model, run, step, head, token) => {
    const { places } = model, pattern = run.patterns[step], start = head * places * run.T;
    return Float32Array.from({ length: places }, (_, n) => pattern[start + n * run.T + token]);
  };
})();
