// What we send: the camera and the microphone, or a picture that is drawn.

const WIDTH = 640;
const HEIGHT = 360;
const FRAMES_PER_SECOND = 15;

/** Ask for camera and microphone, or for whichever of them there is. Null if there is neither, or none is allowed. */
export async function openDevices(wanted) {
  if (!navigator.mediaDevices) return null; // not a page of this machine, and not https
  for (const kinds of [wanted, { video: wanted.video }, { audio: wanted.audio }]) {
    if (!kinds.video && !kinds.audio) continue;
    try {
      return await navigator.mediaDevices.getUserMedia(kinds);
    } catch {
      // perhaps there is only one of them
    }
  }
  return null;
}

/** The first letters of a name's first two words. */
const initials = (name) =>
  name.split(/\s+/).slice(0, 2).map((word) => [...word][0]?.toUpperCase() ?? "").join("");

/** A stream with a drawn picture of a name: quiet waves, and still where less motion is wanted. */
export function drawnStream(name, hue) {
  const canvas = document.createElement("canvas");
  canvas.width = WIDTH;
  canvas.height = HEIGHT;
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const pen = canvas.getContext("2d", { alpha: false });
  const draw = () => paint(pen, name, hue, still.matches ? 0 : performance.now() / 1000);
  draw();
  // a timer, not an animation frame: the others may look while this tab is in the background
  const timer = setInterval(draw, 1000 / FRAMES_PER_SECOND);
  const stream = canvas.captureStream(FRAMES_PER_SECOND);
  const stop = () => {
    clearInterval(timer);
    for (const track of stream.getTracks()) track.stop();
  };
  return { stream, stop };
}

function paint(pen, name, hue, seconds) {
  const sky = pen.createLinearGradient(0, 0, WIDTH, HEIGHT);
  sky.addColorStop(0, `hsl(${hue} 45% 26%)`);
  sky.addColorStop(1, `hsl(${hue + 50} 50% 15%)`);
  pen.fillStyle = sky;
  pen.fillRect(0, 0, WIDTH, HEIGHT);
  for (let wave = 0; wave < 3; wave++) paintWave(pen, hue, wave, seconds);
  pen.fillStyle = `hsl(${hue} 55% 42%)`;
  pen.beginPath();
  pen.arc(WIDTH / 2, 118, 70, 0, 2 * Math.PI);
  pen.fill();
  pen.fillStyle = "#fff";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.font = "600 60px system-ui, sans-serif";
  pen.fillText(initials(name), WIDTH / 2, 121);
  pen.font = "500 24px system-ui, sans-serif";
  pen.fillText(name, WIDTH / 2, 222, 200); // a phone shows no more than the middle
}

function paintWave(pen, hue, wave, seconds) {
  pen.fillStyle = `hsl(${hue + 25 * wave} 60% ${50 + 8 * wave}% / 0.16)`;
  pen.beginPath();
  pen.moveTo(0, HEIGHT);
  for (let x = 0; x <= WIDTH; x += 16) {
    pen.lineTo(x, HEIGHT - 70 + 22 * wave + 18 * Math.sin(x / (90 + 20 * wave) + seconds * (0.9 + 0.3 * wave)));
  }
  pen.lineTo(WIDTH, HEIGHT);
  pen.fill();
}
