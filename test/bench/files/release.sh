#!/bin/sh
# What a release does: name itself, list what it serves, check the configuration.
set -eu
cat > /etc/nginx/sites-available/default <<CONF
server {
  listen 80 default_server;
  root /srv/app/static;
  add_header X-Release $RELEASE always;
}
CONF
python3 - "$RELEASE" <<'PY'
import hashlib, os, sys
with open("/srv/app/release.txt", "w") as out:
    out.write(sys.argv[1] + "\n")
    for folder, _, names in sorted(os.walk("/srv/app")):
        for name in sorted(names):
            if name == "release.txt":
                continue
            path = os.path.join(folder, name)
            with open(path, "rb") as f:
                out.write(hashlib.sha256(f.read()).hexdigest() + "  " + path + "\n")
PY
nginx -t
