"use strict";
/* What the browser would say after a while, at once. Without scripts it is said after a while. */
const says = document.body.appendChild(document.createElement("div"));
says.id = "says";
for (const title of document.querySelectorAll("svg title")) {
  const place = title.parentNode;
  const text = title.textContent;
  place.setAttribute("aria-label", text);
  title.remove();
  place.addEventListener("mousemove", (event) => {
    says.textContent = text;
    says.style.display = "block";
    says.style.left = Math.max(4, Math.min(event.clientX + 12, innerWidth - says.offsetWidth - 8)) + "px";
    says.style.top = event.clientY + 18 + "px";
  });
  place.addEventListener("mouseleave", () => { says.style.display = "none"; });
}
