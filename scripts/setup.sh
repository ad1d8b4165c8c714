#!/usr/bin/env bash
# Make .venv ready: system libraries that OpenCV, Open3D and TorchCodec load, a virtual environment, the pinned packages.
# Does nothing (in milliseconds) when pyproject.toml and constraints.txt are what .venv was made from.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

# --- system libraries: soname → Debian package ---------------------------------------------------------------------------
missing=()
have() { ldconfig -p 2>/dev/null | grep -q "$1" || /sbin/ldconfig -p 2>/dev/null | grep -q "$1"; }
have libusb-1.0.so.0 || missing+=(libusb-1.0-0)
have libGL.so.1 || missing+=(libgl1)
have libgomp.so.1 || missing+=(libgomp1)
have libX11.so.6 || missing+=(libx11-6)
have libgthread-2.0.so.0 || missing+=(libglib2.0-0)
# TorchCodec loads FFmpeg's shared libraries, of any major version from 4 on.
have libavdevice.so || missing+=(ffmpeg)

# --- Python -------------------------------------------------------------------------------------------------------------
python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
fi
if [ -z "$python" ]; then
  echo "setup: Python 3.11 or newer is needed and was not found; install python3.11 python3.11-venv, or run: make PYTHON=/path/to/python" >&2
  exit 1
fi
if [ ! -x "$venv/bin/python" ] && ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  missing+=("$("$python" -c 'import sys; print(f"python3.{sys.version_info[1]}-venv")')")
fi

# --- install what is missing where that is allowed, else say it in one line --------------------------------------------------
if [ ${#missing[@]} -gt 0 ]; then
  sudo=
  [ "$(id -u)" = 0 ] || sudo="sudo -n"
  if command -v apt-get >/dev/null && { [ -z "$sudo" ] || $sudo true 2>/dev/null; } &&
    { echo "setup: installing ${missing[*]}"; $sudo apt-get -qq update && $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}"; } >&2; then
    :
  else
    echo "setup: system packages are missing and could not be installed here; run: sudo apt-get install ${missing[*]}" >&2
  fi
fi

# --- packages -------------------------------------------------------------------------------------------------------------
want=$({ "$python" --version; cat pyproject.toml constraints.txt; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$venv/.made-from" 2>/dev/null || true)" = "$want" ]; then
  exit 0
fi
echo "setup: making $venv with $("$python" --version) (5 to 9 minutes, 7.6 GB)" >&2
# Made in place, marked complete only at the end: an interrupted set-up starts over.
rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
"$venv/bin/python" - <<'PY'
import importlib, sys
for name, why in [("cv2", "libgl1 libglib2.0-0"), ("open3d", "libusb-1.0-0 libgl1 libgomp1 libx11-6")]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"setup: {name} does not load ({error}); run: sudo apt-get install {why}", file=sys.stderr)
PY
echo "$want" >"$venv/.made-from"
