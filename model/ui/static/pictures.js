// The pictures of the form: dropped, chosen, pasted, photographed; each with a thumbnail and a way out.
// Gradio runs this body once, with `element`, `props`, `upload` and `watch`. The value is a list of
// {path, name}: where the page's process keeps a file, and what its owner calls it.

const list = element.querySelector(".thumbs");
const note = element.querySelector(".note");
const chooser = element.querySelector("input.chooser");
const camera = element.querySelector("input.camera");
const add = element.querySelector(".add");
const paste = element.querySelector(".paste");
let uploading = 0;

const pictures = () => (Array.isArray(props.value) ? props.value : []);
function say(text, problem = false) {
  note.textContent = text;
  note.classList.toggle("problem", problem);
}

async function addFiles(files) {
  const images = files.filter((file) => file.type.startsWith("image/"));
  const other = files.find((file) => !file.type.startsWith("image/"));
  const room = Math.max(props.max_pictures - pictures().length - uploading, 0);
  const problems = [];
  if (other) problems.push(`${other.name} is not a picture.`);
  if (images.length > room) problems.push(`This page takes ${props.max_pictures} pictures at once.`);
  const chosen = images.slice(0, room);
  uploading += chosen.length;
  showUploading(chosen);
  const uploaded = await Promise.allSettled(chosen.map(sent));
  uploading -= chosen.length;
  // Together, in the order that they were chosen in, whichever arrived first.
  const added = uploaded.flatMap(({ value }) => value ?? []);
  for (const { reason } of uploaded) if (reason) problems.push(reason.message);
  if (added.length) props.value = [...pictures(), ...added];
  draw();
  say([...problems, added.length ? `${counted()}.` : ""].join(" ").trim(), problems.length > 0);
}

async function sent(file) {
  try {
    const { path } = await upload(file);
    return { path, name: file.name };
  } catch (error) {
    throw new Error(`${file.name} could not be uploaded: ${error.message ?? error}.`);
  }
}

const counted = () => (pictures().length === 1 ? "1 picture" : `${pictures().length} pictures`);

function showUploading(files) {
  document.querySelector("#describe")?.classList.toggle("uploading", uploading > 0);
  for (const file of files) {
    const tile = document.createElement("li");
    tile.className = "waiting";
    tile.setAttribute("aria-label", `Uploading ${file.name}`);
    list.append(tile);
  }
}

function tileOf(picture, index) {
  const tile = document.createElement("li");
  tile.className = "thumb";
  const image = document.createElement("img");
  // Relative: what Gradio takes for the page's address may lack the path that a gateway shows.
  image.src = `gradio_api/file=${encodeURI(picture.path)}`;
  image.alt = picture.name;
  const remove = document.createElement("button");
  remove.type = "button";
  remove.className = "remove";
  remove.setAttribute("aria-label", `Remove ${image.alt}`);
  remove.textContent = "×";
  remove.addEventListener("click", () => removeAt(index));
  tile.append(image, remove);
  return tile;
}

function removeAt(index) {
  const removed = pictures()[index];
  props.value = pictures().filter((_, place) => place !== index);
  draw();
  say(`${removed.name} removed, ${counted()} left.`);
  // Whoever removes by keyboard goes on from the same place.
  (list.querySelectorAll(".remove")[Math.min(index, pictures().length - 1)] ?? add).focus();
}

function draw() {
  list.replaceChildren(...pictures().map(tileOf));
  showUploading([]);
  element.dataset.count = pictures().length;
  document.body.dataset.pictures = pictures().length > 1 ? "many" : "few";
}

async function addSample(button) {
  const answer = await fetch(new URL(button.dataset.sample, document.baseURI));
  const picture = await answer.blob();
  const name = button.dataset.sample.split("/").pop();
  await addFiles([new File([picture], name, { type: picture.type })]);
}

async function addFromClipboard() {
  try {
    const items = await navigator.clipboard.read();
    const found = items.flatMap((item) =>
      item.types.filter((type) => type.startsWith("image/")).map((type) => item.getType(type)),
    );
    const blobs = await Promise.all(found);
    if (blobs.length) addFiles(blobs.map((blob) => new File([blob], nameOf(blob), { type: blob.type })));
    else say("There is no picture in the clipboard.", true);
  } catch {
    say("This browser does not let the page read the clipboard: paste with the keyboard.", true);
  }
}

const nameOf = (blob) => `pasted.${blob.type.split("/")[1]}`;

const filesOf = (transfer) => [...(transfer?.files ?? [])];
const dragging = (on) => element.classList.toggle("dragging", on);

add.addEventListener("click", () => chooser.click());
element.querySelector(".photo").addEventListener("click", () => camera.click());
for (const input of [chooser, camera]) {
  input.addEventListener("change", () => {
    addFiles([...input.files]);
    input.value = "";
  });
}
element.addEventListener("click", (event) => {
  const sample = event.target.closest("[data-sample]");
  if (sample) addSample(sample);
});
paste.hidden = !navigator.clipboard?.read;
paste.addEventListener("click", addFromClipboard);
document.addEventListener("paste", (event) => {
  const files = filesOf(event.clipboardData);
  if (!files.length) return;
  event.preventDefault();
  addFiles(files);
});
// Anywhere on the page: a picture dropped beside the field would otherwise replace the page.
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  dragging(true);
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) dragging(false);
});
document.addEventListener("drop", (event) => {
  dragging(false);
  const files = filesOf(event.dataTransfer);
  if (!files.length) return;
  event.preventDefault();
  addFiles(files);
});
watch("value", draw);
draw();
