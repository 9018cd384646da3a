package owner

import (
	"strings"

	"github.com/twtrace/twtrace/internal/event"
)

// ParseCgroup tells from the path of a control group which container and pod it is
// of. The innermost container counts. Runtime and PodUID are "" where the path does
// not tell, and Container where there is none.
func ParseCgroup(path string) event.Cgroup {
	in := event.Cgroup{Path: path}
	parent, inKubepods := "", false
	for component := range strings.SplitSeq(path, "/") {
		if uid := podOf(component, inKubepods); uid != "" {
			// A kubelet can run in a container, but its pods are not of that.
			in.PodUID, in.Container, in.Runtime = uid, "", ""
		}
		if id, runtime := containerOf(component, parent); id != "" {
			in.Container, in.Runtime = id, runtime
		}
		inKubepods = inKubepods || component == "kubepods"
		parent = component
	}
	return in
}

// scopes are what container runtimes put before the id of a container, and after
// it ".scope" where systemd makes the control group. What belongs to a container's
// monitor has more between ("crio-conmon-").
var scopes = []struct{ prefix, runtime string }{
	{"cri-containerd", "containerd"},
	{"nerdctl", "containerd"},
	{"crio", "cri-o"},
	{"docker", "docker"},
	{"libpod", "podman"},
}

// containerOf returns the id and the runtime of a container that a component of a
// path names.
func containerOf(component, parent string) (id, runtime string) {
	if isID(component) {
		if parent == "docker" {
			return component, "docker"
		}
		return component, ""
	}
	name := strings.TrimSuffix(component, ".scope")
	separator := "-"
	// "SLICE:cri-containerd:ID": a name for systemd, but it does not make it.
	if _, after, ok := strings.Cut(name, ":"); ok {
		name, separator = after, ":"
	}
	for _, scope := range scopes {
		if id, ok := strings.CutPrefix(name, scope.prefix+separator); ok && isID(id) {
			return id, scope.runtime
		}
	}
	return "", ""
}

// podOf returns the uid of a pod that a component of a path names: "pod" and the
// uid beneath "kubepods", or where systemd makes the slices, "kubepods", the class
// of service, and the uid with "_" for "-".
func podOf(component string, inKubepods bool) string {
	if uid, ok := strings.CutPrefix(component, "pod"); ok && inKubepods && isUID(uid) {
		return uid
	}
	// Before a container's name stands the slice that it would be in.
	slice, _, _ := strings.Cut(component, ":")
	slice, ok := strings.CutSuffix(slice, ".slice")
	if !ok || !strings.HasPrefix(slice, "kubepods-") && !strings.Contains(slice, "-kubepods-") {
		return ""
	}
	uid := strings.ReplaceAll(slice[strings.LastIndexByte(slice, '-')+1:], "_", "-")
	if uid, ok := strings.CutPrefix(uid, "pod"); ok && isUID(uid) {
		return uid
	}
	return ""
}

// isID reports whether s is the id of a container.
func isID(s string) bool { return len(s) == 64 && isHex(s) }

// isUID reports whether s is the uid of a pod: a UUID, or of a static pod a hash.
func isUID(s string) bool {
	if len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		s = strings.ReplaceAll(s, "-", "")
	}
	return len(s) == 32 && isHex(s)
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
