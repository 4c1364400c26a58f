// Overlays an image with a map of the score: each location's share. This is attribution, not segmentation.

const PAUSE = 250; // milliseconds; a pointer that only passes over an image sends no request
const WARM = [214, 58, 0];
const COLD = [0, 84, 190];
const STRONGEST = 150; // maximum opacity, of 255, so that the image stays visible

/** Returns a map as a canvas, one pixel per location: warm locations raise the score, cold colours lower the score. */
function drawn(map, strongest) {
  const canvas = document.createElement('canvas');
  canvas.className = 'why';
  [canvas.width, canvas.height] = [map[0].length, map.length];
  const image = new ImageData(canvas.width, canvas.height);
  map.flat().forEach((share, place) => {
    image.data.set([...(share > 0 ? WARM : COLD), Math.round((Math.abs(share) / strongest) * STRONGEST)], 4 * place);
  });
  canvas.getContext('2d').putImageData(image, 0, 0);
  return canvas;
}

/** Overlays the centre crop of an image with a map; returns the share that full colour stands for, or null. */
export function lay({ map }, frame, picture) {
  const strongest = Math.max(...map.flat().map(Math.abs), Number.MIN_VALUE);
  const canvas = drawn(map, strongest);
  const { naturalWidth: width, naturalHeight: height, clientWidth, clientHeight } = picture;
  if (!width || !height) return null;
  const side = Math.min(width, height) * Math.min(clientWidth / width, clientHeight / height);
  canvas.style.width = canvas.style.height = `${side}px`;
  lift(frame);
  frame.append(canvas);
  return strongest;
}

/** Removes the map. */
export const lift = (frame) => frame.querySelector('.why')?.remove();

/**
 * Shows the map of an image while the pointer is over its button, or the button has the focus.
 * @param {HTMLElement} button button of the image.
 * @param {HTMLElement} frame element around the image.
 * @param {HTMLImageElement} picture image in the frame.
 * @param {() => Promise<?object>} explain returns the map, which is kept; null if there is no map.
 */
export function watch(button, frame, picture, explain) {
  let timer = null;
  let answer;
  const show = () => {
    clearTimeout(timer);
    const mine = setTimeout(async () => {
      answer ??= await explain();
      if (answer && timer === mine) lay(answer, frame, picture);
    }, PAUSE);
    timer = mine;
  };
  const hide = () => {
    clearTimeout(timer);
    timer = null;
    lift(frame);
  };
  for (const event of ['pointerenter', 'focus']) button.addEventListener(event, show);
  for (const event of ['pointerleave', 'blur']) button.addEventListener(event, hide);
}
