"use strict";
// A straight line in log rank, as study/analysis/fits.py fits it: one line per seed, then Student's
// t over the seeds.

/**
 * @param points [{rank, seed, value}]: positive, finite values at finite ranks, each rank once per
 *   seed.
 * @param tCritical half-widths in standard errors for 1, 2, ... degrees of freedom.
 * @returns null with fewer than two ranks; otherwise {slope, low, high, seeds, ranks, at}. low and
 *   high are null without an interval. at(rank) returns [value, low, high].
 */
function fitLine(points, tCritical) {
  const bySeed = new Map();
  for (const point of points) {
    if (!bySeed.has(point.seed)) bySeed.set(point.seed, []);
    bySeed.get(point.seed).push([Math.log(point.rank), Math.log(point.value)]);
  }
  if (Math.max(0, ...[...bySeed.values()].map(seed => seed.length)) < 2) return null;
  const seeds = complete([...bySeed.values()]).map(seedLine);
  const used = seeds.flatMap(seed => seed.points);
  const x = mean(used.map(point => point[0]));
  const slopes = seeds.map(seed => seed.slope);
  const levels = seeds.map(seed => seed.y + seed.slope * (x - seed.x));
  const slope = mean(slopes);
  const level = mean(levels);
  const ranks = new Set(used.map(point => point[0])).size;
  const { varSlope, varLevel, cov } = variances(seeds, slopes, levels, used.length);
  const df = seeds.length === 1 ? used.length - 2 : seeds.length - 1;
  const t = df > 0 ? tCritical[Math.min(df, tCritical.length) - 1] : null;
  const half = t === null ? null : t * Math.sqrt(varSlope);
  return {
    slope,
    seeds: seeds.length,
    ranks,
    low: half === null ? null : slope - half,
    high: half === null ? null : slope + half,
    at(rank) {
      const dx = Math.log(rank) - x;
      const y = level + slope * dx;
      if (t === null) return [Math.exp(y), null, null];
      const width = t * Math.sqrt(Math.max(0, varLevel + 2 * dx * cov + dx * dx * varSlope));
      return [Math.exp(y), Math.exp(y - width), Math.exp(y + width)];
    },
  };
}

/**
 * The points of all seeds at the same ranks, as `complete` in study/analysis/fits.py has them. A
 * missing one is fitted by the mean curve of all ranks and a line of its seed. Left out are seeds
 * with fewer than half of the ranks, and ranks with fewer than half of the seeds.
 */
function complete(seeds) {
  let xs = [...new Set(seeds.flat().map(point => point[0]))].sort((a, b) => a - b);
  if (seeds.every(points => points.length === xs.length)) return seeds;
  let kept = seeds.map(points => new Map(points));
  for (let before = ""; before !== `${kept.length} ${xs.length}`; ) {
    before = `${kept.length} ${xs.length}`;
    const enough = seed => {
      const count = xs.filter(x => seed.has(x)).length;
      return count >= Math.max(2, xs.length / 2);
    };
    if (kept.some(enough)) kept = kept.filter(enough);
    xs = xs.filter(x => 2 * kept.filter(seed => seed.has(x)).length >= kept.length);
  }
  // The fit and its missing points, in turns: they converge to the least squares of the others.
  const full = kept.map(seed => {
    const centre = mean([...seed.values()]);
    return xs.map(x => [x, seed.get(x) ?? centre]);
  });
  for (let turn = 0, moved = 1; moved > 1e-14 && turn < 10000; turn++) {
    moved = 0;
    const curve = xs.map((_, k) => mean(full.map(points => points[k][1])));
    full.forEach((points, n) => {
      const line = seedLine(points.map(([x, y], k) => [x, y - curve[k]]));
      points.forEach((point, k) => {
        if (kept[n].has(point[0])) return;
        const fitted = curve[k] + line.y + line.slope * (point[0] - line.x);
        moved = Math.max(moved, Math.abs(fitted - point[1]));
        point[1] = fitted;
      });
    });
  }
  return full;
}

/** (Co)variances of the mean slope and level: over seeds, or over ranks if there is one seed. */
function variances(seeds, slopes, levels, points) {
  if (seeds.length === 1) {
    const variance = seeds[0].rss / (points - 2);
    return { varSlope: variance / seeds[0].sxx, varLevel: variance / points, cov: 0 };
  }
  const [slope, level] = [mean(slopes), mean(levels)];
  const over = seeds.length * (seeds.length - 1);
  return {
    varSlope: sum(slopes.map(s => (s - slope) ** 2)) / over,
    varLevel: sum(levels.map(l => (l - level) ** 2)) / over,
    cov: sum(slopes.map((s, n) => (s - slope) * (levels[n] - level))) / over,
  };
}

/** Least squares through the points of one seed. rss: the residual sum of squares. */
function seedLine(points) {
  const x = mean(points.map(point => point[0]));
  const y = mean(points.map(point => point[1]));
  const sxx = sum(points.map(point => (point[0] - x) ** 2));
  const slope = sum(points.map(point => (point[0] - x) * (point[1] - y))) / sxx;
  const rss = sum(points.map(point => (point[1] - y - slope * (point[0] - x)) ** 2));
  return { points, x, y, sxx, slope, rss };
}

function sum(numbers) {
  let total = 0;
  for (const number of numbers) total += number;
  return total;
}

const mean = numbers => sum(numbers) / numbers.length;
