#!/usr/bin/env bash
# Fetches the pinned drawing packages of sources.csv into .build/sources (about 700 MB, git-ignored).
# Needs npm, and apt-get with dpkg-deb for the one Debian package.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
mkdir -p .build/sources
packages=$(tail -n +2 data/mini/make/sources.csv | cut -d, -f2,3 | grep '^@' | tr ',' '@' | sed 's/^@\(.*\)@/@\1@/')
# shellcheck disable=SC2086
npm install --prefix .build/sources --no-audit --no-fund --no-save $packages emojibase-data@17.0.0
clipart=$(tail -n +2 data/mini/make/sources.csv | grep '^openclipart,' | cut -d, -f2,3 | tr ',' '=')
(cd .build/sources && apt-get download "$clipart" && dpkg-deb -x openclipart-svg_*.deb openclipart)
