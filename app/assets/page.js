// Maps that can be read: a line for the patch under the pointer, or for the one that the arrow keys
// moved to. A click, or Enter, on a map of layers shows it alone and large; another one all again.
// Arrow keys move among the options of a menu too.
(() => {
  const words = NB_WORDS;
  let line = null;

  const say = (map, row, column, x, y) => {
    const { rows, columns, values, name, tokens, sizes } = map.dataset;
    const index = row * columns + column;
    let said = words.patch
      .replace('{name}', name)
      .replace('{row}', row + 1)
      .replace('{column}', column + 1)
      .replace('{value}', values.split('|')[index]);
    const members = [index];
    if (sizes && Number(sizes.split(',')[index]) > 1) {
      said += words.merged.replace('{count}', sizes.split(',')[index] - 1);
      const all = tokens.split(',');
      all.forEach((token, k) => { if (token === all[index] && k !== index) members.push(k); });
    }
    map.dataset.at = `${row},${column}`;
    map.querySelectorAll('.nb-spot:not([hidden])').forEach((spot) => spot.remove());
    for (const k of members) {
      const spot = document.createElement('i');
      spot.className = 'nb-spot';
      spot.style.left = `${100 * (k % columns) / columns}%`;
      spot.style.top = `${100 * Math.floor(k / columns) / rows}%`;
      spot.style.width = `${100 / columns}%`;
      spot.style.height = `${100 / rows}%`;
      map.append(spot);
    }
    if (!line) {
      line = document.createElement('div');
      line.id = 'nb-patch';
      line.setAttribute('role', 'status');
      (document.querySelector('#nb-page') ?? document.body).append(line);
    }
    line.textContent = said;
    line.hidden = false;
    const width = line.offsetWidth;
    line.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 4))}px`;
    line.style.top = `${y > 60 ? y - line.offsetHeight - 14 : y + 18}px`;
  };

  const hush = () => {
    if (line) line.hidden = true;
    document.querySelectorAll('.nb-spot:not([hidden])').forEach((spot) => spot.remove());
  };

  const pointed = (event) => {
    const map = event.target.closest?.('.nb-map');
    if (!map) return hush();
    const box = map.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top) / box.height * map.dataset.rows);
    const column = Math.floor((event.clientX - box.left) / box.width * map.dataset.columns);
    if (row < 0 || column < 0 || row >= map.dataset.rows || column >= map.dataset.columns) return hush();
    return say(map, row, column, event.clientX, event.clientY);
  };

  const moved = (map, down, right) => {
    const [row, column] = (map.dataset.at ?? '-1,-1').split(',').map(Number);
    const inside = (place, count) => Math.max(0, Math.min(count - 1, place));
    const at = row < 0
      ? [0, 0]
      : [inside(row + down, map.dataset.rows), inside(column + right, map.dataset.columns)];
    const box = map.getBoundingClientRect();
    say(
      map, at[0], at[1],
      box.left + (at[1] + 0.5) * box.width / map.dataset.columns,
      box.top + at[0] * box.height / map.dataset.rows,
    );
  };

  const enlarge = (map) => {
    const cell = map.closest('.nb-cell');
    const block = map.closest('#nb-maps-block');
    if (!cell || !block) return;
    const place = String([...cell.parentElement.children].indexOf(cell));
    if (block.dataset.large === place) delete block.dataset.large;
    else block.dataset.large = place;
    hush();
  };

  // Gradio gives every option a name of its own, so arrow keys would not move among them.
  const chosen = (option, way) => {
    const all = [...option.closest('.block').querySelectorAll('input[type=radio]')];
    const next = all[(all.indexOf(option) + way + all.length) % all.length];
    next.focus();
    next.click();
  };

  // Gradio's notices call themselves a button and hold one; who cannot see them would meet two. And
  // the filter of its tables has a title, but no label.
  new MutationObserver(() => {
    document.querySelectorAll('.search-input:not([aria-label])').forEach((field) => {
      field.setAttribute('aria-label', field.title);
    });
    document.querySelectorAll('.toast-header[role]').forEach((head) => {
      head.removeAttribute('role');
      head.removeAttribute('tabindex');
    });
  }).observe(document.documentElement, { childList: true, subtree: true });

  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  document.addEventListener('pointermove', pointed);
  document.addEventListener('pointerdown', pointed);
  document.addEventListener('focusout', hush);
  document.addEventListener('click', (event) => {
    const map = event.target.closest?.('.nb-map');
    if (map) enlarge(map);
  });
  document.addEventListener('keydown', (event) => {
    if (event.target.matches?.('#nb-page input[type=radio]') && event.key in STEPS) {
      event.preventDefault();
      chosen(event.target, STEPS[event.key][0] + STEPS[event.key][1]);
      return;
    }
    const map = event.target.closest?.('.nb-map');
    if (!map) return;
    if (event.key in STEPS) moved(map, ...STEPS[event.key]);
    else if (event.key === 'Enter') enlarge(map);
    else if (event.key === 'Escape') hush();
    else return;
    event.preventDefault();
  });
})();
