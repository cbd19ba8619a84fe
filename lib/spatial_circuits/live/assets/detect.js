// Detector: shape, colour and place of the things in a picture, and whether they stand as told; data/detect.py in its mode
// "clean" and the part of data/metrics.py that a verdict needs, without OpenCV.
//
// OpenCV's contour joins the centres of a blob's outer pixels. Its area and centroid are those of the squares of four pixel
// centres that lie in the blob (whole), or all but one (half: a triangle).
(() => {
  const live = (globalThis.spatialCircuits ??= {});

  // pixels: RGBA, side x side; returns [{shape, color: [r, g, b], area, center: [x, y]}]
  live.detect = (pixels, side) => {
    const { level, minArea } = live.language.detector, found = [];
    for (let channel = 0; channel < 3; channel++) {
      const on = new Uint8Array(side * side), done = new Uint8Array(side * side);
      for (let i = 0; i < on.length; i++) {
        const [r, g, b] = [pixels[4 * i], pixels[4 * i + 1], pixels[4 * i + 2]];
        const brightest = r >= g && r >= b ? 0 : g >= b ? 1 : 2;     // ties go to the first channel
        on[i] = brightest === channel && pixels[4 * i + channel] > level ? 1 : 0;
      }
      for (let i = 0; i < on.length; i++) {
        if (!on[i] || done[i]) continue;
        const own = flood([i], (k) => on[k], side, 8, done);
        if (boxOf(own, side) < minArea) continue;
        const filled = withHoles(own, side);
        filled.forEach((inside, k) => { if (inside) done[k] = 1; }); // what lies in a hole is no blob of its own
        const { area, center } = moments(filled, side);
        if (area >= minArea) found.push({ area, center, color: mean(pixels, filled, on), shape: shapeOf(filled, side) });
      }
    }
    return found;
  };

  // The pixels that can be reached from some, by steps to 4 or 8 neighbours, through those that are open; `seen` takes note of them.
  function flood(from, open, side, neighbours, seen) {
    const found = [];
    const visit = (i) => {
      if (seen[i] || !open(i)) return;
      seen[i] = 1;
      found.push(i);
    };
    from.forEach(visit);
    for (let at = 0; at < found.length; at++) {
      const i = found[at], x = i % side, y = (i - x) / side;
      for (let dy = y > 0 ? -1 : 0; dy <= (y + 1 < side ? 1 : 0); dy++)
        for (let dx = x > 0 ? -1 : 0; dx <= (x + 1 < side ? 1 : 0); dx++)
          if (neighbours === 8 || !dx || !dy) visit(i + dy * side + dx);
    }
    return found;
  }

  // area of the box around the centres of some pixels
  function boxOf(own, side) {
    const [xs, ys] = [own.map((i) => i % side), own.map((i) => Math.floor(i / side))];
    return (Math.max(...xs) - Math.min(...xs)) * (Math.max(...ys) - Math.min(...ys));
  }

  // 1 for the pixels of a blob and of its holes
  function withHoles(own, side) {
    const blob = new Uint8Array(side * side), outside = new Uint8Array(side * side);
    for (const i of own) blob[i] = 1;
    const edge = Array.from({ length: side }, (_, k) => [k, side * (side - 1) + k, side * k, side * k + side - 1]).flat();
    flood(edge, (i) => !blob[i], side, 4, outside);
    return outside.map((reached) => 1 - reached);
  }

  function moments(filled, side) {
    let area = 0, sumX = 0, sumY = 0;
    for (let y = 0; y + 1 < side; y++)
      for (let x = 0; x + 1 < side; x++) {
        const corners = [[x, y], [x + 1, y], [x, y + 1], [x + 1, y + 1]].filter(([a, b]) => filled[b * side + a]);
        if (corners.length < 3) continue;
        const weight = corners.length === 4 ? 1 : 0.5;
        area += weight;
        sumX += (weight * corners.reduce((sum, c) => sum + c[0], 0)) / corners.length;
        sumY += (weight * corners.reduce((sum, c) => sum + c[1], 0)) / corners.length;
      }
    return { area, center: [sumX / area, sumY / area] };
  }

  function mean(pixels, filled, on) {
    const sum = [0, 0, 0];
    let count = 0;
    filled.forEach((inside, i) => {
      if (!inside || !on[i]) return;
      count++;
      for (let c = 0; c < 3; c++) sum[c] += pixels[4 * i + c];
    });
    return sum.map((s) => Math.floor(s / count));
  }

  // the outline, of triangle, circle and rectangle, that the convex hull fills best
  function shapeOf(filled, side) {
    const points = [];
    filled.forEach((inside, i) => { if (inside) points.push([i % side, Math.floor(i / side)]); });
    const corners = hull(points), [xs, ys] = [0, 1].map((axis) => corners.map((p) => p[axis]));
    const width = Math.max(...xs) - Math.min(...xs), height = Math.max(...ys) - Math.min(...ys);
    const outlines = { triangle: triangleArea(corners), circle: Math.PI * circleRadius(corners) ** 2 };
    outlines[Math.abs(width - height) < 5 ? "square" : "rectangle"] = width * height;
    const best = Object.keys(outlines).reduce((a, b) => (outlines[b] < outlines[a] ? b : a));
    return polygonArea(corners) >= live.language.detector.minFill * outlines[best] ? best : "unknown";
  }

  const cross = (o, a, b) => (a[0] - o[0]) * (b[1] - o[1]) - (a[1] - o[1]) * (b[0] - o[0]);

  // convex hull, counter-clockwise where y points up (Andrew, 1979)
  function hull(points) {
    points.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    const half = (ordered) => {
      const out = [];
      for (const p of ordered) {
        while (out.length > 1 && cross(out.at(-2), out.at(-1), p) <= 0) out.pop();
        out.push(p);
      }
      return out.slice(0, -1);
    };
    return [...half(points), ...half([...points].reverse())];
  }

  const polygonArea = (corners) => {
    const next = (i) => corners[(i + 1) % corners.length];
    return corners.reduce((sum, p, i) => sum + p[0] * next(i)[1] - p[1] * next(i)[0], 0) / 2;
  };

  // radius of the smallest circle around the points (Welzl, 1991, without recursion)
  function circleRadius(points) {
    const inside = (c, p) => c && Math.hypot(p[0] - c.x, p[1] - c.y) <= c.r + 1e-9;
    const two = (a, b) => ({ x: (a[0] + b[0]) / 2, y: (a[1] + b[1]) / 2, r: Math.hypot(a[0] - b[0], a[1] - b[1]) / 2 });
    const three = (a, b, c) => {
      const d = 2 * cross(a, b, c), [bx, by, cx, cy] = [b[0] - a[0], b[1] - a[1], c[0] - a[0], c[1] - a[1]];
      const x = (cy * (bx * bx + by * by) - by * (cx * cx + cy * cy)) / d, y = (bx * (cx * cx + cy * cy) - cx * (bx * bx + by * by)) / d;
      return { x: a[0] + x, y: a[1] + y, r: Math.hypot(x, y) };
    };
    let circle = null;
    points.forEach((p, i) => {
      if (inside(circle, p)) return;
      circle = { x: p[0], y: p[1], r: 0 };
      points.slice(0, i).forEach((q, j) => {
        if (inside(circle, q)) return;
        circle = two(p, q);
        for (const s of points.slice(0, j)) if (!inside(circle, s)) circle = three(p, q, s);
      });
    });
    return circle.r;
  }

  // Area of the smallest triangle around a convex polygon. One of its sides lies on an edge, the base. With y the height above
  // it, a right side x = a(m) - m y and a left side x = -b(n) + n y touch the polygon; the area is (a + b)^2 / (2 (m + n)). Where
  // both touch corners of height y, a + b grows by y for each 1 of m + n, and the least area has m + n = (a + b) / y - (m + n).
  function triangleArea(corners) {
    const count = corners.length;
    let least = Infinity;
    for (let edge = 0; edge < count; edge++) {
      const [from, to] = [corners[edge], corners[(edge + 1) % count]], length = Math.hypot(to[0] - from[0], to[1] - from[1]);
      const along = [(to[0] - from[0]) / length, (to[1] - from[1]) / length];
      const turned = Array.from({ length: count }, (_, i) => {
        const p = corners[(edge + 1 + i) % count], [x, y] = [p[0] - from[0], p[1] - from[1]];
        return [x * along[0] + y * along[1], -x * along[1] + y * along[0]];
      });                                                             // from the base's right end, up, and down to its left end
      const top = turned.reduce((best, p, i) => (p[1] > turned[best][1] ? i : best), 0);
      const right = turned.slice(0, top + 1), left = turned.slice(top).reverse().map(([x, y]) => [-x, y]);
      const slope = (chain, i) => (chain[i][0] - chain[i + 1][0]) / (chain[i + 1][1] - chain[i][1]);
      const flat = (chain) => chain.filter((p, i) => !i || p[1] > chain[i - 1][1] + 1e-9);
      const [one, two] = [flat(right), flat(left)];
      if (one.length < 2 || two.length < 2) continue;
      let [i, j] = [0, 0];
      while (i + 1 < one.length && j + 1 < two.length) {              // from edge to edge, upwards
        const sum = slope(one, i) + slope(two, j);
        const upper = one[i + 1][1] < two[j + 1][1] ? [one, ++i] : [two, ++j], height = upper[0][upper[1]][1];
        const chain = upper[0], k = upper[1], last = k + 1 >= chain.length;
        const after = last ? Infinity : sum + slope(chain, k) - slope(chain, k - 1);
        const width = one === chain ? one[k][0] + two[j][0] + slope(two, j) * two[j][1] + slope(one, k - 1) * one[k][1]
          : two[k][0] + one[i][0] + slope(one, i) * one[i][1] + slope(two, k - 1) * two[k][1];   // a + b at `sum`
        const rest = width - height * sum, best = Math.min(Math.max(rest / height, sum), after);
        if (best > 0) least = Math.min(least, (rest + height * best) ** 2 / (2 * best));
      }
    }
    return least;
  }

  // What a picture shows of the sentence told: {unique, dx, dy, loose}; null if the sentence does not say what it should be.
  live.verdict = (pixels, side, told) => {
    const { offsets, detector } = live.language, { shape, color, relation } = live.parse(told);
    const same = shape[0] === shape[1] && (color.includes(null) || color[0] === color[1]);
    if (shape.includes(null) || relation === null || same) return null;
    const pure = [[255, 0, 0], [0, 0, 255]];                        // in the order of the colours
    const passes = (blob, c) => c === null || blob.color.every((v, i) => Math.abs(v - pure[c][i]) < detector.margin);
    const fits = live.detect(pixels, side).map((blob) => ({ blob,
      ok: [0, 1].map((o) => blob.shape === live.language.shapes[shape[o]] && passes(blob, color[o])) }));
    const own = [0, 1].map((o) => fits.filter((f) => f.ok[o]));
    if (own[0].length !== 1 || own[1].length !== 1 || own[0][0] === own[1][0]) return { unique: false, loose: false };
    const d = [0, 1].map((axis) => own[0][0].blob.center[axis] - own[1][0].blob.center[axis]);
    const sign = d.map((v) => (Math.abs(v) > detector.align ? Math.sign(v) : 0));
    const loose = offsets[relation].every((wanted, axis) => wanted === 0 || wanted === sign[axis]);
    return { unique: true, dx: d[0], dy: d[1], loose };
  };

  // half to even, as Python rounds
  const rounded = (v) => (Math.abs(v % 1) === 0.5 ? 2 * Math.round(v / 2) : Math.round(v));

  live.outcome = (found) => {
    if (!found) return "not judged: the sentence does not say two things and a relation";
    if (!found.unique) return "an object is missing or doubled";
    const dx = rounded(found.dx), dy = rounded(found.dy);
    return `object 1 is ${Math.abs(dx)} px ${dx < 0 ? "left" : "right"} of and ${Math.abs(dy)} px ` +
      `${dy < 0 ? "above" : "below"} object 2, ${found.loose ? "as told" : "not as told"}`;
  };
})();
