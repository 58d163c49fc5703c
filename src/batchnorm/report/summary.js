document.querySelector("#summary-png")?.addEventListener("click", event => {
  event.preventDefault();
  const image = new Image();
  image.onload = () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * image.width, 2 * image.height];
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    const link = document.createElement("a");
    Object.assign(link, { download: "summary.png", href: canvas.toDataURL("image/png") });
    link.click();
  };
  image.src = document.querySelector("#summary-svg").href;
});
