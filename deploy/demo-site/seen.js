// Asks for this very page again and says in plain words what the edge answered.
const plain = (status) => {
  if (!status) return "No Cache-Status in the answer: you are talking to the origin itself.";
  const last = status.split(/,(?=(?:[^"]*"[^"]*")*[^"]*$)/).pop().trim();
  const node = last.split(";")[0].trim().replaceAll('"', "");
  const detail = /detail="?([^";]+)"?/.exec(last)?.[1] ?? "";
  const [source, who] = detail.split(":");
  if (/;\s*hit\b/.test(last)) return `${node} had it in its own cache: nobody else was asked.`;
  if (source === "peer") return `${node} did not have it and fetched it from its peer ${who}: the origin was not asked.`;
  if (source === "home") return `${node} fetched it through ${who}, which asks the origin for the whole cluster.`;
  if (source === "origin") return `${node} asked the origin. Reload: now it is in the cache.`;
  return `${node} passed the request on.`;
};

const box = document.querySelector("[data-seen]");
if (box) {
  const began = performance.now();
  fetch(location.href, { cache: "no-store" }).then(async (answer) => {
    await answer.arrayBuffer();
    const ms = Math.round(performance.now() - began);
    box.querySelector("p").textContent = plain(answer.headers.get("cache-status"));
    for (const field of box.querySelectorAll("dd")) {
      field.textContent = field.dataset.field === "time" ? `${ms} ms` : (answer.headers.get(field.dataset.field) ?? "—");
    }
  }).catch((error) => { box.querySelector("p").textContent = `The edge could not be asked: ${error.message}`; });
}
