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
  const seeds = commonRanks([...bySeed.values()]).map(seedLine);
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
 * The points of the seeds that a line is fitted to: all seeds over the same ranks, as
 * study/analysis/blocks.py chooses them. A set of ranks is an integer, one bit per rank.
 */
function commonRanks(seeds) {
  const xs = [...new Set(seeds.flat().map(point => point[0]))].sort((a, b) => a - b);
  const bit = point => 1 << xs.indexOf(point[0]);
  const own = seeds.map(points => points.reduce((ranks, point) => ranks | bit(point), 0));
  if (own.every(ranks => ranks === own[0])) return seeds;
  const size = ranks => xs.filter((_, k) => (ranks >> k) & 1).length;
  const has = ranks => one => (one & ranks) === ranks;
  const needed = Math.min(3, Math.max(...own.map(size)));
  const shared = new Set();
  for (const one of own) {
    for (const ranks of [...shared]) shared.add(one & ranks);
    shared.add(one);
  }
  let [best, most] = [0, [0, -1, 0]];
  for (const ranks of [...shared].sort((a, b) => a - b)) {
    if (ranks === 0 || size(ranks) < needed) continue;
    const count = own.filter(has(ranks)).length;
    const precision = Number((count * spread(xs.filter((_, k) => (ranks >> k) & 1))).toFixed(9));
    const value = [Math.min(count, 2), precision, count];
    const k = value.findIndex((part, n) => part !== most[n]);
    if (k >= 0 && value[k] > most[k]) [best, most] = [ranks, value];
  }
  const kept = seeds.filter((_, n) => has(best)(own[n]));
  return kept.map(points => points.filter(point => best & bit(point)));
}

/** The sum of squares about the mean. */
function spread(values) {
  const centre = mean(values);
  return sum(values.map(value => (value - centre) ** 2));
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
