import subprocess
import sys


def test_importing_the_flows_makes_no_form():
    """It is made where a flow is deployed; every process of a pipeline would wait for it."""
    code = (
        "import prefect.utilities.callables as forms\n"
        "forms.generate_parameter_schema = None\n"
        "import flows.pipeline\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
