"use strict";
// Players: sheets of images, a column a moment of time and a row a step of noise; one slider for each that has several.
for (const player of document.querySelectorAll(".player2")) {
  const columns = Number(player.dataset.columns), rows = Number(player.dataset.rows);
  const said = JSON.parse(player.dataset.said), line = player.querySelector(".said2");
  const [across, down] = ["column", "row"].map((name) => player.querySelector(`input[name=${name}]`));
  const button = player.querySelector("button");
  const panels = [...player.querySelectorAll("canvas")].map((canvas) => [canvas, canvas.nextElementSibling]);
  let timer = null;
  function draw() {
    const i = across ? Number(across.value) : 0, j = down ? Number(down.value) : 0;
    for (const [canvas, sheet] of panels) {
      const context = canvas.getContext("2d"), w = canvas.width, h = canvas.height;
      context.clearRect(0, 0, w, h);
      context.drawImage(sheet, i * w, j * h, w, h, 0, 0, w, h);
    }
    line.textContent = said.length ? said[j * columns + i] : "";
  }
  function stop() { clearInterval(timer); timer = null; button.textContent = "Play"; }
  function step() {
    const slider = across || down;
    slider.value = Number(slider.value) >= Number(slider.max) ? 0 : Number(slider.value) + 1;
    draw();
  }
  button.addEventListener("click", () => {
    if (timer) return stop();
    button.textContent = "Stop";
    timer = setInterval(step, Number(player.dataset.wait));
  });
  for (const slider of [across, down]) if (slider) slider.addEventListener("input", draw);
  Promise.all(panels.map(([, sheet]) => sheet.decode())).then(draw);
}
Promise.all([...document.images].map((image) => image.decode().catch(() => null))).then(() => {
  document.documentElement.dataset.ready = "yes";
});
