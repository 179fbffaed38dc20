#!/bin/sh
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-get -q install -y --no-install-recommends nginx-light python3-minimal
mkdir -p /srv/app
