#!/bin/sh
# Prepares the browser check: node, the locked npm packages and Chromium. Says what is missing, and exits 1.
set -eu
cd "$(dirname "$0")"

browser=${CHROMIUM:-/usr/bin/chromium}

fail() {
    echo "html check: $1" >&2
    exit 1
}

command -v npm >/dev/null 2>&1 || fail "node 20 or newer, with npm, is missing; install it, then run this again."
major=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
[ "$major" -ge 20 ] || fail "node $(node --version) is too old; 20 or newer is needed."

if [ ! -x "$browser" ]; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        fail "$browser is missing; install Chromium (on Debian: apt-get install chromium), or set CHROMIUM to its path."
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
    [ -x "$browser" ] || fail "$browser is still missing; set CHROMIUM to the path of the installed browser."
fi

if ! cmp -s package-lock.json node_modules/.installed; then
    npm ci --no-audit --no-fund --loglevel=error
    cp package-lock.json node_modules/.installed
fi
