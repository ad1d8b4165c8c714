#!/usr/bin/env bash
# A headless Chromium for the tests of pages. Where it is neither there nor can be installed, these tests are skipped.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
sudo=
[ "$(id -u)" = 0 ] || sudo="sudo -n"
if command -v apt-get >/dev/null && { [ -z "$sudo" ] || $sudo true 2>/dev/null; } &&
  { echo "browser: installing chromium (a minute, 0.5 GB)"; $sudo apt-get -qq update && $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium; } >&2; then
  exit 0
fi
echo "browser: Chromium could not be installed here, so the tests of pages are skipped; run: sudo apt-get install chromium" >&2
