"""Settings are read without torch: a typing error on the command line costs no second of imports."""

import subprocess
import sys


def test_settings_import_no_torch() -> None:
    code = "import sys, fedgen.models.settings, fedgen.privacy.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
