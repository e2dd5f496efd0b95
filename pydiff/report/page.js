"use strict";
// The page's images come from sprite sheets: an image for each quantity, a row for each step, a column for each image.
// Canvases show one tile each. Attributes say which: data-show is "x", "x0" or "eps", data-column a fixed image, and
// data-position, of a button, the step it jumps to.

const numbers = JSON.parse(document.getElementById("numbers").textContent);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function draw(canvas, sprite, row, column, label) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  context.drawImage(sprite, column * width, row * height, width, height, 0, 0, width, height);
  canvas.setAttribute("aria-label", label);
}

const spritesOf = (process) =>
  Object.fromEntries(["x", "x0", "eps"].map((name) => [name, document.getElementById(`${process}-${name}`)]));
const outputsIn = (root) => Object.fromEntries(all("output", root).map((output) => [output.name, output]));
const chosenIn = (root) => Number(root.querySelector("input[type=radio]:checked").value);
const places = (value) => (value > 0 && value < 0.005 ? value.toPrecision(1) : value.toFixed(value < 10 ? 2 : 1));

// ---- forward process ------------------------------------------------------------------------------------------------

function startForward() {
  const { t, alpha, sigma } = numbers.forward;
  const root = document.getElementById("forward");
  const slider = root.querySelector("input[type=range]");
  const sprite = spritesOf("forward");
  const outputs = outputsIn(root);

  function update() {
    const k = Number(slider.value);
    const image = chosenIn(root);
    const name = `training image ${image + 1}`;
    for (const canvas of all(".equation canvas", root)) {
      const which = canvas.dataset.show;
      const label = { x: `${name} with noise, t = ${t[k]}`, x0: name, eps: "the noise" }[which];
      draw(canvas, sprite[which], which === "x" ? k : 0, image, label);
    }
    for (const button of all(".chosen", root)) {
      const row = Number(button.dataset.position);
      draw(button.firstElementChild, sprite.x, row, image, `${name} at t = ${t[row]}`);
      button.setAttribute("aria-current", row === k);
    }
    outputs.alpha.value = places(alpha[k]);
    outputs.sigma.value = places(sigma[k]);
    outputs.t.value = t[k];
    outputs.share.value = places(alpha[k] ** 2);
    slider.setAttribute("aria-valuetext", `t = ${t[k]}`);
  }

  root.addEventListener("input", update);
  for (const button of all(".chosen", root)) {
    button.addEventListener("click", () => { slider.value = button.dataset.position; update(); });
  }
  update();
}

// ---- reverse process ------------------------------------------------------------------------------------------------

function startReverse() {
  const { steps, t, total } = numbers.trace;
  const root = document.getElementById("reverse");
  const slider = root.querySelector("input[type=range]");
  const play = root.querySelector(".play");
  const sprite = spritesOf("trace");
  const outputs = outputsIn(root);
  const marks = all("[data-position]", root);
  const what = { x: "the image so far", x0: "the predicted clean image", eps: "the predicted noise" };
  let timer = null;

  function update() {
    const row = Number(slider.value);
    const sample = chosenIn(root);
    const moment = `after ${steps[row]} of ${total} steps`;
    for (const canvas of all(".choice canvas", root)) {
      const column = Number(canvas.dataset.column);
      draw(canvas, sprite.x, row, column, `sample ${column + 1} ${moment}`);
    }
    for (const canvas of all(".panels canvas", root)) {
      const which = canvas.dataset.show;
      draw(canvas, sprite[which], row, sample, `${what[which]}, sample ${sample + 1}, ${moment}`);
    }
    for (const canvas of all(".moments canvas", root)) {
      const at = Number(canvas.parentElement.dataset.position);
      draw(canvas, sprite.x, at, sample, `sample ${sample + 1} after ${steps[at]} of ${total} steps`);
    }
    for (const mark of marks) mark.setAttribute("aria-current", Number(mark.dataset.position) === row);
    outputs.step.value = steps[row];
    outputs.t.value = t[row];
    slider.setAttribute("aria-valuetext", moment);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  function advance() {
    slider.value = Number(slider.value) + 1;
    update();
    if (slider.value === slider.max) stop();
  }

  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (slider.value === slider.max) slider.value = 0;
    play.textContent = "Pause";
    timer = setInterval(advance, Math.min(200, Math.max(60, 8000 / steps.length)));
    update();
  });
  slider.addEventListener("input", () => { stop(); update(); });
  root.querySelector(".choice").addEventListener("input", update);
  for (const mark of marks) {
    mark.addEventListener("click", () => { stop(); slider.value = mark.dataset.position; update(); });
  }
  update();
}

// ---- loss curve -----------------------------------------------------------------------------------------------------

function startLoss() {
  const { step, loss, smooth } = numbers.loss;
  const plot = document.querySelector("#chart .plot");
  const cursor = plot.querySelector(".cursor");
  const readout = document.getElementById("loss-readout");
  let point = step.length - 1;

  function show(index) {
    point = Math.max(0, Math.min(step.length - 1, index));
    const share = (step[point] - step[0]) / (step.at(-1) - step[0]);
    cursor.hidden = false;
    cursor.style.left = 100 * share + "%";
    const [raw, average] = [loss, smooth].map((values) => values[point].toPrecision(3));
    readout.textContent = `Step ${step[point].toLocaleString("en")}: loss ${raw}, smoothed ${average}`;
  }

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const wanted = step[0] + ((event.clientX - box.left) / box.width) * (step.at(-1) - step[0]);
    const right = step.findIndex((value) => value >= wanted);
    const index = right < 0 ? step.length - 1 : right;
    show(index > 0 && wanted - step[index - 1] < step[index] - wanted ? index - 1 : index);
  });
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageDown: -25, PageUp: 25, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    show(point + move);
  });
}

// ---- sounds ---------------------------------------------------------------------------------------------------------

function startSounds() {
  const players = all("audio");
  for (const player of players) {
    const figure = player.closest("figure");
    player.addEventListener("play", () => {
      for (const other of players) if (other !== player) other.pause();
      figure.classList.add("playing");
    });
    for (const end of ["pause", "ended"]) player.addEventListener(end, () => figure.classList.remove("playing"));
  }
  for (const button of all(".inturn")) {
    const turn = all("audio", button.closest(".way"));
    button.addEventListener("click", () => {
      turn.forEach((player, i) => { player.onended = () => { if (turn[i + 1]) turn[i + 1].play(); }; });
      turn[0].currentTime = 0;
      turn[0].play();
    });
  }
}

Promise.all([...document.images].map((image) => image.decode())).then(() => {
  if (numbers.forward) startForward();
  if (numbers.trace) startReverse();
  if (numbers.loss) startLoss();
  startSounds();
  document.documentElement.dataset.ready = "yes";
});
