// What the theme leaves to be done for keyboards and screen readers.
document.addEventListener("DOMContentLoaded", () => {
  const japanese = document.documentElement.lang === "ja";
  const name = (selector, english, other) =>
    document.querySelectorAll(selector).forEach((part) => part.setAttribute("aria-label", japanese ? other : english));

  document.querySelectorAll('.caption[role="heading"]').forEach((part) => part.setAttribute("aria-level", "2"));
  document.querySelectorAll("thead th").forEach((part) => part.textContent.trim() || part.setAttribute("role", "cell"));
  document.querySelectorAll(".content-icon-container").forEach((part) => part.setAttribute("role", "navigation"));
  name(".content-icon-container", "Source and theme", "ソースとテーマ");
  name(".sidebar-drawer", "Site", "サイト");
  name(".toc-drawer", "On this page", "このページの内容");

  // Code, tables and formulas that are wider than the page are reached by Tab, and scrolled by the arrow keys.
  const reach = () =>
    document.querySelectorAll("article pre, .table-wrapper, div.math").forEach((part) => {
      if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
      else part.removeAttribute("tabindex");
    });
  reach();
  window.addEventListener("load", reach);
  window.addEventListener("resize", reach);
});
