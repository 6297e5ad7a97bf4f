"use strict";
// Draws what the page holds: slices with contours, surfaces. Nothing is fetched, no text becomes markup.
(() => {
  const byId = (name) => document.getElementById(name);
  const config = JSON.parse(byId("v-config").textContent);
  const sources = [...document.querySelectorAll("script.case")];
  const REFERENCE = "*", SMALLEST_ERROR_MM2 = 30, SURFACE_MM = 2.6, BACKGROUND = [16, 21, 27, 255];
  const picks = { case: byId("v-case"), structure: byId("v-structure"), window: byId("v-window"), method: byId("v-method") };
  const bars = { slice: byId("v-slice"), turn: byId("v-turn") };
  const panels = document.querySelector(".panels"), surfaces = document.querySelector(".surfaces");
  const opened = new Map();
  let now = null, asked = 0;

  // ---- reading a case ----

  async function unpacked(text, count) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const packed = new Uint8Array(await new Response(stream).arrayBuffer());
    const mask = new Uint8Array(count);
    for (let at = 0; at < count; at++) mask[at] = (packed[at >> 3] >> (7 - (at & 7))) & 1;
    return mask;
  }

  async function greys(content) {
    const picture = new Image();
    picture.src = content.image;
    await picture.decode();
    const [depth, height, width] = content.shape, columns = content.columns;
    const canvas = new OffscreenCanvas(picture.width, picture.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    const pixels = context.getImageData(0, 0, picture.width, picture.height).data;
    const grey = new Uint8Array(depth * height * width);
    let to = 0;
    for (let z = 0; z < depth; z++)
      for (let y = 0; y < height; y++) {
        let from = 4 * (((Math.floor(z / columns) * height + y) * picture.width) + (z % columns) * width);
        for (let x = 0; x < width; x++, from += 4) grey[to++] = pixels[from];
      }
    return grey;
  }

  async function open(number) {
    if (!opened.has(number)) {
      const content = JSON.parse(sources[number].textContent);
      const count = content.shape.reduce((product, size) => product * size, 1);
      const masks = {};
      for (const [structure, named] of Object.entries(content.masks)) {
        masks[structure] = {};
        for (const [name, text] of Object.entries(named)) masks[structure][name] = await unpacked(text, count);
      }
      const lung = content.lung && (await unpacked(content.lung, count));
      opened.set(number, { ...content, masks, lung, grey: await greys(content), meshes: new Map() });
      if (opened.size > 3) opened.delete(opened.keys().next().value);
    }
    return opened.get(number);
  }

  // ---- a slice ----

  const voxel = (kept, z, y, x) => (z * kept.shape[1] + y) * kept.shape[2] + x;

  function outline(context, mask, kept, z, scaleX, scaleY, colour, width) {
    // marching squares between pixel centres: each pair of unlike corners is crossed in the middle
    const [, height, wide] = kept.shape, first = voxel(kept, z, 0, 0);
    const at = (y, x) => y >= 0 && x >= 0 && y < height && x < wide && mask[first + y * wide + x] === 1;
    context.beginPath();
    for (let y = -1; y < height; y++)
      for (let x = -1; x < wide; x++) {
        const corners = at(y, x) | (at(y, x + 1) << 1) | (at(y + 1, x + 1) << 2) | (at(y + 1, x) << 3);
        if (corners === 0 || corners === 15) continue;
        const points = [[x + 1, y + 0.5], [x + 1.5, y + 1], [x + 1, y + 1.5], [x + 0.5, y + 1]]; // top, right, bottom, left
        for (const [from, to] of SEGMENTS[corners]) {
          context.moveTo(points[from][0] * scaleX, points[from][1] * scaleY);
          context.lineTo(points[to][0] * scaleX, points[to][1] * scaleY);
        }
      }
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke();
  }
  const SEGMENTS = [[], [[3, 0]], [[0, 1]], [[3, 1]], [[1, 2]], [[3, 0], [1, 2]], [[0, 2]], [[3, 2]], [[2, 3]], [[0, 2]],
    [[0, 1], [2, 3]], [[1, 2]], [[1, 3]], [[0, 1]], [[3, 0]], []];

  function largestError(kept, reference, predicted, z) {
    const [, height, width] = kept.shape, first = voxel(kept, z, 0, 0), seen = new Uint8Array(height * width);
    const wrong = (at) => reference[first + at] !== predicted[first + at];
    let best = null;
    for (let start = 0; start < seen.length; start++) {
      if (seen[start] || !wrong(start)) continue;
      const stack = [start];
      let size = 0, sumY = 0, sumX = 0;
      seen[start] = 1;
      while (stack.length) {
        const at = stack.pop(), y = Math.floor(at / width), x = at % width;
        size++; sumY += y; sumX += x;
        for (const [dy, dx] of [[0, 1], [0, -1], [1, 0], [-1, 0]]) {
          const ny = y + dy, nx = x + dx, next = ny * width + nx;
          if (ny < 0 || nx < 0 || ny >= height || nx >= width || seen[next] || !wrong(next)) continue;
          seen[next] = 1;
          stack.push(next);
        }
      }
      if (!best || size > best.size) best = { size, y: sumY / size, x: sumX / size };
    }
    const [, stepY, stepX] = kept.spacing;
    return best && best.size * stepY * stepX >= SMALLEST_ERROR_MM2 ? best : null;
  }

  function arrow(context, x, y, unit) {
    const away = 16 * unit, from = { x: x + (x > context.canvas.width / 2 ? -1 : 1) * away, y: y - away };
    const angle = Math.atan2(y - from.y, x - from.x);
    context.strokeStyle = context.fillStyle = "#ffe14d";
    context.lineWidth = 1.6 * unit;
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(x, y);
    for (const turn of [2.6, -2.6]) {
      context.moveTo(x, y);
      context.lineTo(x + 6 * unit * Math.cos(angle + turn), y + 6 * unit * Math.sin(angle + turn));
    }
    context.stroke();
  }

  function windowed(kept, z) {
    const [level, width] = config.windows[picks.window.value], [low, high] = kept.range;
    const table = new Uint8ClampedArray(256);
    for (let grey = 0; grey < 256; grey++) {
      const hu = low + ((high - low) * grey) / 255;
      table[grey] = (255 * (hu - (level - width / 2))) / width;
    }
    const [, rows, columns] = kept.shape, picture = new ImageData(columns, rows), first = voxel(kept, z, 0, 0);
    for (let at = 0; at < rows * columns; at++) {
      const value = table[kept.grey[first + at]];
      picture.data.set([value, value, value, 255], 4 * at);
    }
    const plane = new OffscreenCanvas(columns, rows);
    plane.getContext("2d").putImageData(picture, 0, 0);
    return plane;
  }

  function drawSlices() {
    const kept = now, z = Number(bars.slice.value), masks = kept.masks[picks.structure.value];
    const [depth, rows, columns] = kept.shape, [stepZ, stepY, stepX] = kept.spacing;
    const plane = windowed(kept, z);
    byId("v-where").textContent = `${z + 1} of ${depth}, ${Math.round(z * stepZ)} mm`;
    for (const panel of panels.children) {
      const canvas = panel.querySelector("canvas"), context = canvas.getContext("2d");
      const unit = window.devicePixelRatio || 1, width = Math.max(1, Math.round(canvas.clientWidth * unit));
      canvas.width = width;
      canvas.height = Math.round((width * rows * stepY) / (columns * stepX));
      const scaleX = width / columns, scaleY = canvas.height / rows;
      context.imageSmoothingQuality = "high";
      context.drawImage(plane, 0, 0, canvas.width, canvas.height);
      const reference = masks[REFERENCE], predicted = masks[panel.dataset.name];
      if (predicted) outline(context, predicted, kept, z, scaleX, scaleY, panel.dataset.colour, 1.5 * unit);
      if (reference) outline(context, reference, kept, z, scaleX, scaleY, config.reference, 1.1 * unit);
      const worst = reference && predicted && largestError(kept, reference, predicted, z);
      if (worst) arrow(context, (worst.x + 0.5) * scaleX, (worst.y + 0.5) * scaleY, unit);
      marks(context, scaleX / stepX, unit);
    }
  }

  function marks(context, pixelsPerMm, unit) {
    const { width, height } = context.canvas;
    context.font = `${12 * unit}px system-ui, sans-serif`;
    context.fillStyle = context.strokeStyle = "#fff";
    context.fillText("R", 5 * unit, 15 * unit);
    context.fillText("L", width - 14 * unit, 15 * unit);
    context.fillRect(width - 8 * unit - 50 * pixelsPerMm, height - 8 * unit, 50 * pixelsPerMm, 2 * unit);
    context.textAlign = "right";
    context.fillText("50 mm", width - 8 * unit, height - 12 * unit);
    context.textAlign = "left";
  }

  // ---- a surface ----

  function field(kept, mask) {
    // the mask on cubes of SURFACE_MM, smoothed once, with a border of nothing
    const sizes = kept.shape.map((size, axis) => Math.max(2, Math.round((size * kept.spacing[axis]) / SURFACE_MM)) + 4);
    const [depth, height, width] = sizes, values = new Float32Array(depth * height * width);
    const taps = sizes.map((size, axis) => Array.from({ length: size }, (_, at) => {
      const position = ((at - 2 + 0.5) * kept.shape[axis]) / (size - 4) - 0.5, low = Math.floor(position);
      return [low, position - low];
    }));
    const at = (z, y, x) => z >= 0 && y >= 0 && x >= 0 && z < kept.shape[0] && y < kept.shape[1] && x < kept.shape[2]
      ? mask[voxel(kept, z, y, x)] : 0;
    for (let z = 0; z < depth; z++)
      for (let y = 0; y < height; y++)
        for (let x = 0; x < width; x++) {
          const [lz, wz] = taps[0][z], [ly, wy] = taps[1][y], [lx, wx] = taps[2][x];
          let sum = 0;
          for (const [dz, pz] of [[0, 1 - wz], [1, wz]])
            for (const [dy, py] of [[0, 1 - wy], [1, wy]])
              sum += pz * py * ((1 - wx) * at(lz + dz, ly + dy, lx) + wx * at(lz + dz, ly + dy, lx + 1));
          values[(z * height + y) * width + x] = sum;
        }
    for (const stride of [1, width, height * width]) {
      const before = values.slice();
      for (let here = stride; here < values.length - stride; here++)
        values[here] = 0.25 * before[here - stride] + 0.5 * before[here] + 0.25 * before[here + stride];
    }
    return { values, sizes };
  }

  function mesh(kept, mask) {
    // surface nets: a vertex in each cube that the surface crosses, two triangles for each edge that it cuts
    const { values, sizes: [depth, height, width] } = field(kept, mask);
    const strides = [height * width, width, 1], numbers = new Int32Array(values.length).fill(-1);
    const points = [], triangles = [];
    for (let z = 0; z < depth - 1; z++)
      for (let y = 0; y < height - 1; y++)
        for (let x = 0; x < width - 1; x++) {
          const first = (z * height + y) * width + x, sum = [0, 0, 0];
          let inside = 0, crossed = 0;
          for (let corner = 0; corner < 8; corner++)
            if (values[first + (corner & 1) + (corner & 2 ? width : 0) + (corner & 4 ? strides[0] : 0)] >= 0.5) inside++;
          if (inside === 0 || inside === 8) continue;
          for (let axis = 0; axis < 3; axis++)
            for (let corner = 0; corner < 4; corner++) {
              const others = OTHERS[axis], start = [0, 0, 0];
              start[others[0]] = corner & 1;
              start[others[1]] = corner >> 1;
              const low = first + start[0] * strides[0] + start[1] * strides[1] + start[2];
              const a = values[low] - 0.5, b = values[low + strides[axis]] - 0.5;
              if (a < 0 === b < 0) continue;
              start[axis] += a / (a - b);
              crossed++;
              for (let one = 0; one < 3; one++) sum[one] += start[one];
            }
          numbers[first] = points.length / 3;
          points.push(x + sum[2] / crossed - width / 2, y + sum[1] / crossed - height / 2, z + sum[0] / crossed - depth / 2);
        }
    for (let at = 0; at < values.length; at++) {
      for (let axis = 0; axis < 3; axis++) {
        const next = at + strides[axis];
        if (next >= values.length || values[at] < 0.5 === values[next] < 0.5) continue;
        const [one, two] = [strides[(axis + 1) % 3], strides[(axis + 2) % 3]];
        const corners = [at, at - one, at - one - two, at - two].map((cell) => (cell < 0 ? -1 : numbers[cell]));
        if (corners.includes(-1)) continue;
        triangles.push(corners[0], corners[1], corners[2], corners[0], corners[2], corners[3]);
      }
    }
    return { points: Float32Array.from(points), triangles: Int32Array.from(triangles), ...bounds(points) };
  }

  function bounds(points) {
    const low = [0, 0, 0].fill(Infinity), high = [0, 0, 0].fill(-Infinity);
    for (let at = 0; at < points.length; at++) {
      low[at % 3] = Math.min(low[at % 3], points[at]);
      high[at % 3] = Math.max(high[at % 3], points[at]);
    }
    return { middle: low.map((value, axis) => (value + high[axis]) / 2), reach: Math.hypot(...low.map((value, axis) => high[axis] - value)) / 2 };
  }

  const OTHERS = [[1, 2], [0, 2], [0, 1]];

  function meshOf(kept, mask) {
    if (!kept.meshes.has(mask)) kept.meshes.set(mask, mesh(kept, mask));
    return kept.meshes.get(mask);
  }

  function render(context, layers, turn, { middle, reach }) {
    const size = context.canvas.width, cos = Math.cos(turn), sin = Math.sin(turn);
    const picture = context.createImageData(size, size), pixels = picture.data;
    for (let at = 0; at < pixels.length; at += 4) pixels.set(BACKGROUND, at);
    const scale = (0.56 * size) / reach;
    const solid = new Float32Array(size * size).fill(Infinity);
    for (const { mesh: { points, triangles }, colour, glass } of layers) {
      const depths = glass ? new Float32Array(size * size).fill(Infinity) : solid, shades = new Float32Array(size * size);
      const placed = new Float32Array(points.length);
      for (let at = 0; at < points.length; at += 3) { // x to the patient's left, y to the back, z to the head
        const x = points[at] - middle[0], y = points[at + 1] - middle[1], z = points[at + 2] - middle[2];
        placed[at] = size / 2 + scale * (x * cos + y * sin);
        placed[at + 1] = size / 2 - scale * z;
        placed[at + 2] = y * cos - x * sin;
      }
      for (let at = 0; at < triangles.length; at += 3) {
        const [a, b, c] = [3 * triangles[at], 3 * triangles[at + 1], 3 * triangles[at + 2]];
        const ux = (placed[b] - placed[a]) / scale, uy = (placed[b + 1] - placed[a + 1]) / scale, uz = placed[b + 2] - placed[a + 2];
        const vx = (placed[c] - placed[a]) / scale, vy = (placed[c + 1] - placed[a + 1]) / scale, vz = placed[c + 2] - placed[a + 2];
        let nx = uy * vz - uz * vy, ny = uz * vx - ux * vz, nz = ux * vy - uy * vx;
        const length = Math.hypot(nx, ny, nz) || 1, sign = nz > 0 ? -1 : 1; // the side that is seen
        nx *= sign / length; ny *= sign / length; nz *= sign / length;
        const light = glass ? 1 + nz * 0.8 : 0.35 + 0.75 * Math.max(0, -0.35 * nx - 0.5 * ny - 0.8 * nz);
        const left = Math.max(0, Math.floor(Math.min(placed[a], placed[b], placed[c])));
        const right = Math.min(size - 1, Math.ceil(Math.max(placed[a], placed[b], placed[c])));
        const top = Math.max(0, Math.floor(Math.min(placed[a + 1], placed[b + 1], placed[c + 1])));
        const bottom = Math.min(size - 1, Math.ceil(Math.max(placed[a + 1], placed[b + 1], placed[c + 1])));
        const area = (placed[b] - placed[a]) * (placed[c + 1] - placed[a + 1]) - (placed[b + 1] - placed[a + 1]) * (placed[c] - placed[a]);
        if (!area) continue;
        for (let y = top; y <= bottom; y++)
          for (let x = left; x <= right; x++) {
            const p = ((placed[b] - x) * (placed[c + 1] - y) - (placed[b + 1] - y) * (placed[c] - x)) / area;
            const q = ((placed[c] - x) * (placed[a + 1] - y) - (placed[c + 1] - y) * (placed[a] - x)) / area;
            if (p < -0.001 || q < -0.001 || p + q > 1.001) continue;
            const depth = p * placed[a + 2] + q * placed[b + 2] + (1 - p - q) * placed[c + 2], here = y * size + x;
            if (depth < depths[here]) { depths[here] = depth; shades[here] = light; }
          }
      }
      for (let here = 0; here < shades.length; here++) {
        if (!shades[here] || (glass && depths[here] > solid[here])) continue;
        const opacity = glass ? 0.1 + 0.5 * shades[here] ** 2 : 1, to = 4 * here;
        for (let part = 0; part < 3; part++) {
          const value = glass ? colour[part] : colour[part] * shades[here];
          pixels[to + part] = opacity * value + (1 - opacity) * pixels[to + part];
        }
      }
    }
    context.putImageData(picture, 0, 0);
  }

  function drawSurfaces() {
    const kept = now, structure = picks.structure.value, turn = (Number(bars.turn.value) * Math.PI) / 180;
    const named = kept.masks[structure], frame = meshOf(kept, kept.lung || named[REFERENCE] || named[picks.method.value]);
    for (const figure of surfaces.children) {
      const canvas = figure.querySelector("canvas"), name = figure.dataset.of === REFERENCE ? REFERENCE : picks.method.value;
      const told = config.methods.find((method) => method.name === name);
      const size = Math.min(560, Math.round(canvas.clientWidth * Math.min(2, window.devicePixelRatio || 1)));
      canvas.width = canvas.height = Math.max(64, size);
      figure.querySelector("figcaption").textContent = told ? told.title : "reference";
      const layers = [];
      const mask = named[name];
      if (mask) layers.push({ mesh: meshOf(kept, mask), colour: rgb(told ? told.colour : config.reference) });
      const around = structure === "lesion" && ((kept.masks.lung || {})[name] || kept.lung);
      if (around) layers.push({ mesh: meshOf(kept, around), colour: config.structures.lung, glass: true });
      render(canvas.getContext("2d"), layers, turn, frame);
    }
  }

  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  // ---- choosing ----

  function choices(pick, values, kept) {
    pick.replaceChildren(...values.map(([value, told]) => new Option(told, value)));
    if (values.some(([value]) => value === kept)) pick.value = kept;
  }

  function build() {
    const named = now.masks[picks.structure.value], dice = now.scores[picks.structure.value] || {};
    const methods = config.methods.filter((method) => named[method.name]);
    const best = methods.reduce((a, b) => ((dice[b.name] || 0) > (dice[a.name] || 0) ? b : a), methods[0] || {}).name;
    choices(picks.method, methods.map((method) => [method.name, method.title]), picks.method.value || best);
    panels.replaceChildren(...methods.map((method) => {
      const figure = document.createElement("figure"), canvas = document.createElement("canvas");
      figure.dataset.name = method.name;
      figure.dataset.colour = method.colour;
      const score = dice[method.name], told = score === undefined ? method.title : `${method.title} ${score.toFixed(3)}`;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${told}: contours on ${now.case}`);
      canvas.addEventListener("wheel", scrolled, { passive: false });
      const caption = document.createElement("figcaption"), words = document.createElement("span");
      words.textContent = told;
      caption.append(words);
      if (named[REFERENCE]) caption.append(toLargest(method, named));
      figure.append(canvas, caption);
      return figure;
    }));
    const shown = named[REFERENCE] ? [REFERENCE, "method"] : ["method"];
    surfaces.replaceChildren(...shown.map((name) => {
      const figure = document.createElement("figure"), canvas = document.createElement("canvas");
      figure.dataset.of = name;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `surface: ${name === REFERENCE ? "reference" : name}`);
      canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
      canvas.addEventListener("pointermove", (event) => { if (event.buttons) turned(event.movementX); });
      figure.append(canvas, document.createElement("figcaption"));
      return figure;
    }));
  }

  function toLargest(method, named) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "largest error";
    button.setAttribute("aria-label", `go to the slice of ${method.title}'s largest error`);
    button.addEventListener("click", () => {
      bars.slice.value = mostWrong(named[REFERENCE], named[method.name]);
      drawSlices();
    });
    return button;
  }

  function mostWrong(reference, predicted) {
    const plane = now.shape[1] * now.shape[2];
    let best = 0, most = -1;
    for (let z = 0; z < now.shape[0]; z++) {
      let wrong = 0;
      for (let at = z * plane; at < (z + 1) * plane; at++) wrong += reference[at] ^ predicted[at];
      if (wrong > most) [best, most] = [z, wrong];
    }
    return best;
  }

  function largestSlice(mask) {
    return mask ? mostWrong(new Uint8Array(mask.length), mask) : Math.floor(now.shape[0] / 2);
  }

  function scrolled(event) {
    event.preventDefault();
    bars.slice.value = Number(bars.slice.value) + (event.deltaY > 0 ? -1 : 1);
    drawSlices();
  }

  function turned(pixels) {
    bars.turn.value = ((Number(bars.turn.value) + pixels + 540) % 360) - 180;
    drawSurfaces();
  }

  function structureChosen() {
    build();
    const named = now.masks[picks.structure.value];
    bars.slice.value = largestSlice(named[REFERENCE] || named[picks.method.value]);
    drawSlices();
    drawSurfaces();
  }

  async function show(number, structure) {
    const turn = ++asked, found = await open(number);
    if (turn !== asked) return; // another one was chosen meanwhile
    now = found;
    picks.case.value = number;
    const order = Object.keys(now.masks).sort();
    choices(picks.structure, order.map((name) => [name, name]), structure || picks.structure.value);
    bars.slice.max = now.shape[0] - 1;
    document.body.dataset.shown = now.case;
    for (const dot of document.querySelectorAll("svg.dots circle")) dot.classList.toggle("open", isOf(sources[number], dot));
    structureChosen();
  }

  const isOf = (source, dot) => source.dataset.case === dot.dataset.case && source.dataset.set === dot.dataset.set;

  function dotChosen(dot) {
    const number = sources.findIndex((source) => isOf(source, dot));
    if (number >= 0) {
      show(number, dot.dataset.structure);
      byId("viewer").scrollIntoView();
    } else if (dot.dataset.page) location.assign(dot.dataset.page);
  }

  for (const plot of document.querySelectorAll("svg.dots")) {
    plot.classList.add("live");
    plot.addEventListener("click", (event) => { if (event.target.closest("circle")) dotChosen(event.target.closest("circle")); });
  }
  if (!sources.length) return;
  for (const part of document.querySelectorAll(".viewer .controls, #v-note")) part.hidden = false;
  picks.case.addEventListener("change", () => show(Number(picks.case.value)));
  picks.structure.addEventListener("change", structureChosen);
  picks.window.addEventListener("change", drawSlices);
  picks.method.addEventListener("change", drawSurfaces);
  bars.slice.addEventListener("input", drawSlices);
  bars.turn.addEventListener("input", drawSurfaces);
  let waiting = 0;
  window.addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => { if (now) { drawSlices(); drawSurfaces(); } });
  });
  show(0);
})();
