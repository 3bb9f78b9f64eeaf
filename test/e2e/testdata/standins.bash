# What the README and the pages of docs/howto use and a test can't: root, systemd, a container engine, a minute of
# compiling, all the tests. Each stand-in takes only what the pages ask of it, does the nearest thing that is real, and refuses the
# rest. They work in blocks that howto_test.go lists as elsewhere; a block that it does not list is not
# allowed to call them, and so fails.
#
# Given: $ROOT, below which the machine's files are; $REPO, the working tree; $BIN, the binary; $OPS, a free
# port for what listens on 8401 by default; $NOTIFIED, where what is told to $NOTIFY is written.

refuse() {
	echo "$*: the test has no stand-in for this; see test/e2e/testdata/standins.bash" >&2
	exit 1
}

listed() {
	[ -n "$elsewhere" ] || refuse "$* (in a block that is not listed as elsewhere)"
}

# A user is known when useradd made it. Numbers need no entry.
user() {
	case $1 in
	*[!0-9]*) grep -qx "$1" "$ROOT/users" || refuse "there is no user $1" ;;
	esac
}

# go run: the command is there. What it does is a test of its own.
go() {
	listed go "$@"
	[ "$*" = "run ./cmd/bailment quickstart" ] || refuse go "$@"
	"$BIN" quickstart --help > /dev/null
}

# make build: compiles with other flags than the tests, for a minute. What it would run is looked at, and the tests' binary is its result.
# make test: runs this. make release-check: several minutes. make release: the real one, in the tree where the page is followed.
make() {
	listed make "$@"
	case $* in
	test)
		command make --no-print-directory -n -C "$REPO" test > /dev/null
		return
		;;
	release-check)
		command make --no-print-directory -n release-check | grep -q 'scripts/release-check$'
		return
		;;
	'release RELEASE_KEY=../release-key')
		command make --no-print-directory "$@"
		return
		;;
	build) ;;
	*) refuse make "$@" ;;
	esac
	command make --no-print-directory -n -C "$REPO" build > "$ROOT/recipe"
	grep -q '^CGO_ENABLED=0 go build .* -o bin/bailment ./cmd/bailment$' "$ROOT/recipe" || refuse "make build does something else"
	mkdir -p bin
	ln "$BIN" bin/bailment
}

# sudo: as the test's own user, below $ROOT and the present directory.
sudo() {
	listed sudo "$@"
	case $1 in
	useradd | systemctl) ;;
	install | chown | cp | tee)
		for argument; do
			case $argument in
			"$ROOT"/* | "$PWD"/*) ;;
			/* | *..*) refuse sudo "$@" ;;
			esac
		done
		;;
	*) refuse sudo "$@" ;;
	esac
	"$@"
}

# useradd: the user is noted.
useradd() {
	listed useradd "$@"
	[ $# = 6 ] && [ "$1 $2 $4 $5" = "--system --home-dir --shell /usr/sbin/nologin" ] || refuse useradd "$@"
	echo "$6" >> "$ROOT/users"
}

# install and chown: who shall own the file must be there. The test's own user owns it.
install() {
	local arguments=()
	listed install "$@"
	while [ $# -gt 0 ]; do
		case $1 in
		-o | -g)
			user "$2"
			shift 2
			;;
		*)
			arguments+=("$1")
			shift
			;;
		esac
	done
	command install "${arguments[@]}"
}

chown() {
	local owner
	listed chown "$@"
	[ "$1" != -R ] || shift
	owner=$1
	shift
	user "${owner%%:*}"
	user "${owner##*:}"
	ls -d "$@" > /dev/null
}

# started PID ROLE: until it says that it is ready, as systemd waits for Type=notify.
started() {
	until grep -qx READY=1 "$NOTIFIED"; do
		kill -0 "$1" || {
			cat "$ROOT/$2.log" >&2
			refuse "the $2 ended"
		}
		sleep 0.05
	done
	: > "$NOTIFIED"
}

# daemon ROLE CONFIG PROGRAM ARGUMENT...: in the background, by that configuration and by what it leaves to defaults here.
daemon() {
	local role=$1 config=$2
	shift 2
	cp "$config" "$ROOT/$role.yaml"
	grep -q '^data:' "$config" || echo "data: $data" >> "$ROOT/$role.yaml"
	case $role in
	server) grep -q '^ops_listen:' "$config" || echo "ops_listen: 127.0.0.1:$OPS" >> "$ROOT/$role.yaml" ;;
	agent) grep -q '^socket:' "$config" || echo "socket: $runtime/agent.sock" >> "$ROOT/$role.yaml" ;;
	esac
	NOTIFY_SOCKET=$NOTIFY "$@" "$ROOT/$role.yaml" 2> "$ROOT/$role.log" &
	echo $! > "$ROOT/$role.pid"
	started $! "$role"
}

# stopped: both daemons, gracefully.
stopped() {
	local role
	for role in agent server; do
		kill "$(cat "$ROOT/$role.pid")"
		wait "$(cat "$ROOT/$role.pid")" || refuse "the $role did not stop gracefully"
	done
}

# systemctl: systemd-analyze reads the installed units, where there is one, and the unit's command is run as the unit says.
systemctl() {
	local unit role data runtime mask
	listed systemctl "$@"
	case $* in
	daemon-reload) ;;
	'enable --now bailment-server' | 'enable --now bailment-agent')
		unit=$ROOT/etc/systemd/system/$3.service
		cmp "$unit" "$REPO/packaging/systemd/$3.service"
		if command -v systemd-analyze > /dev/null; then
			sed "s#/usr/bin/bailment#$ROOT/usr/bin/bailment#" "$unit" > "$ROOT/$3.service"
			systemd-analyze verify "$ROOT/$3.service"
		fi
		role=${3#bailment-}
		grep -qx Type=notify "$unit"
		grep -qx "ExecStart=/usr/bin/bailment $role --config /etc/bailment/$role.yaml" "$unit"
		user "$(sed -n 's/^User=//p' "$unit")"
		data=$ROOT/var/lib/$(sed -n 's/^StateDirectory=//p' "$unit")
		runtime=$ROOT/run/$(sed -n 's/^RuntimeDirectory=//p' "$unit")
		command install -d -m "$(sed -n 's/^StateDirectoryMode=//p' "$unit")" "$data"
		command install -d -m "$(sed -n 's/^RuntimeDirectoryMode=//p' "$unit")" "$runtime"
		mask=$(umask)
		umask "$(sed -n 's/^UMask=//p' "$unit")"
		daemon "$role" "$ROOT/etc/bailment/$role.yaml" "$ROOT/usr/bin/bailment" "$role" --config
		umask "$mask"
		;;
	*) refuse systemctl "$@" ;;
	esac
}

# docker: an image is the file that the Dockerfile copies. A container is its process, with the volumes' paths put in the place of those in it.
docker() {
	listed docker "$@"
	local command=$1
	shift
	case $command in
	build)
		[ "$*" = "--file Dockerfile.bailment --tag bailment ." ] || refuse docker build "$@"
		printf '%s\n' 'FROM scratch' 'COPY bin/bailment /bailment' 'USER 10001:10001' 'ENTRYPOINT ["/bailment"]' | cmp - Dockerfile.bailment
		cp bin/bailment "$ROOT/image"
		;;
	run) container "$@" ;;
	exec)
		[ "$1 $2" = "agent /bailment" ] || refuse docker exec "$@"
		shift 2
		BAILMENT_AGENT=$(cat "$ROOT/agent.runtime")/agent.sock "$ROOT/image" "$@"
		;;
	stop)
		[ "$*" = "-t 20 agent bailment" ] || refuse docker stop "$@"
		stopped
		;;
	*) refuse docker "$command" "$@" ;;
	esac
}

# mounted PATH: what the volumes have there.
mounted() {
	local volume
	for volume in "${volumes[@]}"; do
		volume=${volume%:ro}
		if [ "${volume#*:}" = "$1" ]; then
			[ -e "${volume%%:*}" ] || refuse "the volume ${volume%%:*} is not there"
			echo "${volume%%:*}"
			return
		fi
	done
	refuse "there is no volume at $1"
}

container() {
	local volumes=() data runtime config token
	while [ "${1#--}" != "$1" ]; do
		case $1 in
		--detach | --rm | --read-only) shift ;;
		--volume)
			volumes+=("$2")
			shift 2
			;;
		--name | --cap-drop | --security-opt | --ulimit | --publish) shift 2 ;;
		*) refuse docker run "$@" ;;
		esac
	done
	case "$1 $2 $3" in
	'bailment server --config')
		config=$(mounted "$4")
		data=$(mounted "$(sed -n 's/^data: //p' "$config")")
		sed "s#^data: .*#data: $data#" "$config" > "$ROOT/in-container.yaml"
		daemon server "$ROOT/in-container.yaml" "$ROOT/image" server --config
		;;
	'bailment agent --config')
		config=$(mounted "$4")
		data=$(mounted /var/lib/bailment-agent)
		runtime=$(mounted /run/bailment)
		echo "$runtime" > "$ROOT/agent.runtime"
		token=$(mounted /token)
		sed "s#/token\$#$token#" "$config" > "$ROOT/in-container.yaml"
		daemon agent "$ROOT/in-container.yaml" "$ROOT/image" agent --config
		;;
	'your-image /bailment run')
		runtime=$(mounted /run/bailment)
		shift 2
		[ "${*: -1}" = /your/program ] || refuse docker run "$@"
		BAILMENT_AGENT=$runtime/agent.sock "$ROOT/image" "${@:1:$#-1}" "$ROOT/your/program"
		;;
	*) refuse docker run "$@" ;;
	esac
}
