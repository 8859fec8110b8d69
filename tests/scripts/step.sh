# For the scripts beside it: show a command, then run it.
step() {
    echo
    echo "\$ $*"
    "$@"
}
