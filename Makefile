# make demo | ask | test | lint | bench | venv | lock; the variables below can be given on the command line.
VENV ?= .venv
SUITE ?= libero_object
TASK ?= 0
TRIAL ?= 0
# Without a name the default, which policies/types.py holds.
POLICY ?=
QUESTION ?= how far is the milk from the basket?
# Processes that share the tests, a file at a time: 0 runs them in pytest's own.
JOBS ?= 2
# More options for `python -m sim.demo` or `sim.ask`, or for pytest.
ARGS ?=

BIN := $(abspath $(VENV))/bin
RUN := PATH="$(BIN):$$PATH" AMENT_PREFIX_PATH="$(abspath $(VENV))$${AMENT_PREFIX_PATH:+:$$AMENT_PREFIX_PATH}" \
       MUJOCO_GL="$${MUJOCO_GL:-egl}" $(BIN)/python
# The loader of the ROS wheels leaves this mark to its children; in another environment it would keep it from working.
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE
unexport PYTHONHOME

.PHONY: demo ask test lint bench venv lock

demo: venv
	@$(RUN) -m sim.demo --suite $(SUITE) --task $(TASK) --trial $(TRIAL) $(if $(POLICY),--policy $(POLICY)) $(ARGS)

ask: export ASKED = $(QUESTION)
ask: venv
	@$(RUN) -m sim.ask --question "$$ASKED" $(ARGS)

# A process that is lost (killed for its memory, say) is not replaced: pytest-xdist 3.8 would wait for ever for the files
# that it gives to the new one (its issues 1323 and 1327), or run the test that kills it again and again.
test: venv
	@$(RUN) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS)

lint: venv
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy
	@$(BIN)/lint-imports --no-cache >$(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }

bench: venv
	@$(RUN) -m benchmarks $(ARGS)

venv:
	@bash scripts/make_venv.sh $(VENV)

# New pins, for Python 3.10 to 3.12 alike; versions already pinned stay unless UPGRADE=--upgrade is given.
lock: venv
	cd requirements && $(BIN)/uv pip compile --quiet --universal --python-version 3.10 $(UPGRADE) \
		--override overrides.txt --no-emit-package torch --custom-compile-command "make lock" \
		core.in policy.in spatial.in training.in prior.in sim.in ray.in franka.in test.in -o lock.txt && sed -i '/^$$/d' lock.txt
	cd requirements && $(BIN)/uv pip compile --quiet --universal --python-version 3.10 $(UPGRADE) \
		--custom-compile-command "make lock" -c lock.txt ros-wheels.in -o lock-ros.txt
