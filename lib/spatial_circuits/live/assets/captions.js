// Captions: what a sentence says, and which of its words says it; data/captions.py in JavaScript.
// `live.language` holds the words: shapes, colors, synonyms, phrases, phraseRelation, relations, offsets.
(() => {
  const live = (globalThis.spatialCircuits ??= {});
  const SPACE = "[ \\t\\n\\r\\f\\v]";

  // {shape, color: [of object 1, of object 2], relation, phrase, spans: [[start, end, role]]}; null where nothing is said
  live.parse = (text) => {
    const { shapes, colors, synonyms, phrases, phraseRelation } = live.language;
    const longest = [...phrases].sort((a, b) => b.length - a.length);
    const phrase = new RegExp(longest.map((p) => "\\b" + p.replaceAll(" ", SPACE + "+") + "\\b").join("|"), "i");
    const word = new RegExp("\\b(" + [...shapes, ...colors, ...Object.keys(synonyms)].join("|") + ")\\b", "gi");
    const out = { shape: [null, null], color: [null, null], relation: null, phrase: null, spans: [] };
    const found = phrase.exec(text), start = found ? found.index : text.length, end = found ? start + found[0].length : start;
    if (found) {
      out.phrase = phrases.indexOf(found[0].toLowerCase().split(/\s+/).join(" "));
      out.relation = phraseRelation[out.phrase];
      out.spans.push([start, end, "relation"]);
    }
    const words = [...text.matchAll(word)].map((m) => ({ said: m[0].toLowerCase(), start: m.index, end: m.index + m[0].length }));
    const it = new RegExp(`${SPACE}+it\\b(${SPACE}+(there${SPACE}+)?is\\b)?`, "iy");
    it.lastIndex = end;
    const pronoun = found ? it.exec(text) : null;
    const before = objects(words.filter((w) => w.end <= start)), after = objects(words.filter((w) => w.start >= end));
    ordered(before, after, found, pronoun).forEach((parts, which) => {
      for (const part of parts) {
        const said = synonyms[part.said] ?? part.said, isShape = shapes.includes(said);
        if (isShape) out.shape[which] = shapes.indexOf(said);
        else out.color[which] = colors.indexOf(said);
        out.spans.push([part.start, part.end, (isShape ? "shape" : "colour") + (which + 1)]);
      }
    });
    out.spans.sort((a, b) => a[0] - b[0]);
    return out;
  };

  // the words of each object: a colour, a shape or both; the last colour may follow its shape
  function objects(words) {
    const out = [], kinds = [];
    for (const word of words) {
      const shape = live.language.shapes.includes(word.said);
      if (shape && kinds.at(-1) === "c") { out.at(-1).push(word); kinds[kinds.length - 1] = "cs"; }
      else { out.push([word]); kinds.push(shape ? "s" : "c"); }
    }
    if (kinds.at(-2) === "s" && kinds.at(-1) === "c") out.splice(-2, 2, [...out.at(-2), ...out.at(-1)]);
    return out;
  }

  // object 1 and object 2 of those before and after the phrase
  function ordered(before, after, phrase, pronoun) {
    if (!phrase) return before.slice(0, 2);
    if (!before.length) return after.length > 1 ? [...after.slice(1, 2), after[0]] : [[], ...after];
    if (pronoun && pronoun[1] && after.length) return [after[0], before.at(-1)];
    if (before.length > 1 && (pronoun || !after.length)) return [before.at(-1), before.at(-2)];
    return [before.at(-1), ...after.slice(0, 1)];
  }

  live.role = (parsed, start, end) => (parsed.spans.find(([s, e]) => start < e && end > s) ?? [0, 0, "filler"])[2];

  // the sentence with the first phrase of another relation
  live.restated = (text, relation) => {
    const [start, end] = live.parse(text).spans.find((span) => span[2] === "relation");
    return text.slice(0, start) + live.language.phrases[live.language.phraseRelation.indexOf(relation)] + text.slice(end);
  };
})();
