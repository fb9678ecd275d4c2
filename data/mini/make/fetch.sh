#!/usr/bin/env bash
# Fetches the pinned drawing packages of sources.csv into .build/sources (about 700 MB, git-ignored).
# Needs npm, and apt-get with dpkg-deb for the one Debian package. Either is refused if its content
# is not what was pinned: package-lock.json has the hashes of the packages of npm.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
mkdir -p .build/sources
cp data/mini/make/package.json data/mini/make/package-lock.json .build/sources
npm ci --prefix .build/sources --no-audit --no-fund --ignore-scripts
clipart=$(tail -n +2 data/mini/make/sources.csv | grep '^openclipart,' | cut -d, -f2,3 | tr ',' '=')
cd .build/sources
rm -f openclipart-svg_*.deb
apt-get download "$clipart"
sha256sum openclipart-svg_*.deb |
	grep -q '^989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5 ' ||
	{ echo 'openclipart-svg is not the package that was pinned' >&2; exit 1; }
dpkg-deb -x openclipart-svg_*.deb openclipart
