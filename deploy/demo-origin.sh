#!/bin/sh
# Makes the demo site's download once, then becomes nginx. Random bytes do not compress and are
# nobody's; the volume keeps them, so that a restart changes nothing.
set -eu

dir=/var/lib/demo-download
mib=${DEMO_DOWNLOAD_MIB:-48}

if [ ! -s "$dir/SHA256SUMS" ]; then
    head -c "$((mib * 1024 * 1024))" /dev/urandom >"$dir/horizons.bin"
    (cd "$dir" && sha256sum horizons.bin >SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS)
    chmod 0644 "$dir/horizons.bin" "$dir/SHA256SUMS"
fi

exec nginx -g 'daemon off;'
