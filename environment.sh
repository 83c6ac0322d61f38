# Sourced by start.sh and tests/run. `make_environment FILE...` creates .venv in this folder and installs the requirement
# files; `make_browser` sees to a Chromium. Works as root and, through sudo, as a user.

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

apt_install() {
  as_root apt-get update -q
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
}

# Prints a Python that is new enough: $PYTHON if set, else the first found.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.12 python3.13 python3.14 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done
  echo "Python 3.11 or newer is needed and was not found; name one, as in PYTHON=/path/to/python3.12." >&2
  return 1
}

make_environment() {
  local python version file options=()
  if ! command -v "${PYTHON:-python3}" >/dev/null && command -v apt-get >/dev/null; then
    apt_install python3 python3-venv
  fi
  python=$(find_python)
  # Debian and Ubuntu keep what `venv` needs in a package of its own.
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null && command -v apt-get >/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    apt_install "python$version-venv"
  fi
  [ -x .venv/bin/pip ] || "$python" -m venv .venv

  for file in "$@"; do options+=(-r "$file"); done
  [ -t 1 ] || options+=(--quiet)
  echo "Installing $* into .venv; the first time this fetches several GB on Linux ..."
  .venv/bin/python -m pip install --disable-pip-version-check "${options[@]}"
}

# Prints a Chromium that runs: Ubuntu's chromium-browser is a stub that only asks for a snap.
find_chromium() {
  local candidate
  for candidate in "${NB_CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
    if [ -n "$candidate" ] && "$candidate" --version >/dev/null 2>&1; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

# Debian's Chromium where apt has one that runs, else Playwright's own with the libraries it asks for.
make_browser() {
  if find_chromium >/dev/null; then return 0; fi
  if ! command -v apt-get >/dev/null; then
    .venv/bin/python -m playwright install chromium
    return
  fi
  apt_install chromium fonts-dejavu-core || echo "apt has no Chromium here; taking Playwright's own."
  if find_chromium >/dev/null; then return 0; fi
  .venv/bin/python -m playwright install --with-deps chromium
}
