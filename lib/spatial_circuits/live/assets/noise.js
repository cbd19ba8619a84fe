// Noise: the starting noise of a seed, the same numbers as torch.randn gives on a CPU.
(() => {
  const live = (globalThis.spatialCircuits ??= {});

  // The Mersenne Twister mt19937 (Matsumoto and Nishimura, 1998): a function that gives the next 32 bits.
  function twister(seed) {
    const state = new Uint32Array(624);
    state[0] = seed;
    for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
    let at = 624;
    return () => {
      if (at === 624) {
        for (let i = 0; i < 624; i++) {
          const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
          state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
        }
        at = 0;
      }
      let y = state[at++];
      y ^= y >>> 11;
      y ^= (y << 7) & 0x9d2c5680;
      y ^= (y << 15) & 0xefc60000;
      return (y ^ (y >>> 18)) >>> 0;
    };
  }

  // Standard normal numbers, a multiple of 16 of them, as torch's normal_fill makes them: uniform numbers of 24 bits in blocks
  // of 16, whose first and second halves become radius and angle (Box and Muller, 1958).
  live.noise = (seed, count) => {
    const next = twister(seed), numbers = Float32Array.from({ length: count }, () => (next() & 0xffffff) / 0x1000000);
    for (let block = 0; block < count; block += 16)
      for (let i = block; i < block + 8; i++) {
        const radius = Math.sqrt(-2 * Math.log(1 - numbers[i])), angle = 2 * Math.PI * numbers[i + 8];
        numbers[i] = radius * Math.cos(angle);
        numbers[i + 8] = radius * Math.sin(angle);
      }
    return numbers;
  };
})();
