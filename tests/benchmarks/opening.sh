# Sourced by the scripts in this folder:   . "$(dirname "$0")/opening.sh"
# here           the checkout
# installed X    an environment with the project and its extras X ("" or "[test]"), made where there is no influence yet
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
installed() { command -v influence > /dev/null || { . "$here/.ci/setup"; setup "$1"; }; }
