package owner

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twtrace/twtrace/internal/event"
)

const (
	idA = "2f0c9f1dd1a97d4a3a9f5c6bbd4f6c3e7f8091a2b3c4d5e6f708192a3b4c5d6e"
	idB = "b00b1e5dd1a97d4a3a9f5c6bbd4f6c3e7f8091a2b3c4d5e6f708192a3b4c5d6f"
	uid = "0c1f6b1e-8a3e-4a41-9d55-7f0a7f0f7a11"
	// uid_ is how systemd's slices spell it.
	uid_ = "0c1f6b1e_8a3e_4a41_9d55_7f0a7f0f7a11"
	// static is the uid of a static pod.
	static = "4f2b1c0d9e8f7a6b5c4d3e2f1a0b9c8d"
)

// layouts are paths as the runtimes make them, with what they tell. In version 1 the
// same stand beneath each controller.
var layouts = []struct {
	name, path string
	want       event.Cgroup
}{
	{"containerd, systemd", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uid_ + ".slice/cri-containerd-" + idA + ".scope",
		event.Cgroup{Container: idA, Runtime: "containerd", PodUID: uid}},
	{"containerd, systemd, guaranteed", "/kubepods.slice/kubepods-pod" + uid_ + ".slice/cri-containerd-" + idA + ".scope",
		event.Cgroup{Container: idA, Runtime: "containerd", PodUID: uid}},
	{"containerd, cgroupfs", "/kubepods/burstable/pod" + uid + "/" + idA, event.Cgroup{Container: idA, PodUID: uid}},
	{"containerd, cgroupfs, guaranteed", "/kubepods/pod" + uid + "/" + idA, event.Cgroup{Container: idA, PodUID: uid}},
	{"containerd, the kubelet by systemd and it by cgroupfs", "/kubepods-besteffort-pod" + uid_ + ".slice:cri-containerd:" + idA,
		event.Cgroup{Container: idA, Runtime: "containerd", PodUID: uid}},
	{"the same, v1 beneath a unit", "/system.slice/containerd.service/kubepods-besteffort-pod" + uid_ + ".slice:cri-containerd:" + idA,
		event.Cgroup{Container: idA, Runtime: "containerd", PodUID: uid}},
	{"CRI-O, systemd", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + uid_ + ".slice/crio-" + idA + ".scope",
		event.Cgroup{Container: idA, Runtime: "cri-o", PodUID: uid}},
	{"CRI-O, systemd, a cgroup of its own beneath", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + uid_ + ".slice/crio-" + idA + ".scope/container",
		event.Cgroup{Container: idA, Runtime: "cri-o", PodUID: uid}},
	{"CRI-O, cgroupfs", "/kubepods/besteffort/pod" + uid + "/crio-" + idA, event.Cgroup{Container: idA, Runtime: "cri-o", PodUID: uid}},
	{"CRI-O's monitor", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + uid_ + ".slice/crio-conmon-" + idA + ".scope",
		event.Cgroup{PodUID: uid}},
	{"cri-dockerd, systemd", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uid_ + ".slice/docker-" + idA + ".scope",
		event.Cgroup{Container: idA, Runtime: "docker", PodUID: uid}},
	{"cri-dockerd, cgroupfs", "/kubepods/burstable/pod" + uid + "/" + idA, event.Cgroup{Container: idA, PodUID: uid}},
	{"a static pod, systemd", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + static + ".slice/cri-containerd-" + idA + ".scope",
		event.Cgroup{Container: idA, Runtime: "containerd", PodUID: static}},
	{"a static pod, cgroupfs", "/kubepods/burstable/pod" + static + "/" + idA, event.Cgroup{Container: idA, PodUID: static}},
	{"Docker, systemd", "/system.slice/docker-" + idA + ".scope", event.Cgroup{Container: idA, Runtime: "docker"}},
	{"Docker, cgroupfs", "/docker/" + idA, event.Cgroup{Container: idA, Runtime: "docker"}},
	{"Docker, a parent of the user's", "/web/" + idA, event.Cgroup{Container: idA}},
	{"nerdctl, systemd", "/system.slice/nerdctl-" + idA + ".scope", event.Cgroup{Container: idA, Runtime: "containerd"}},
	{"nerdctl, cgroupfs", "/default/" + idA, event.Cgroup{Container: idA}},
	{"Podman", "/machine.slice/libpod-" + idA + ".scope/container", event.Cgroup{Container: idA, Runtime: "podman"}},
	{"Podman's monitor", "/machine.slice/libpod-conmon-" + idA + ".scope", event.Cgroup{}},
	{"Podman without root", "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + idA + ".scope", event.Cgroup{Container: idA, Runtime: "podman"}},
	{"systemd in a container", "/kubepods/pod" + uid + "/" + idA + "/system.slice/ssh.service", event.Cgroup{Container: idA, PodUID: uid}},
	{"Docker in a pod", "/kubepods/pod" + uid + "/" + idA + "/docker/" + idB, event.Cgroup{Container: idB, Runtime: "docker", PodUID: uid}},
	{"a node in Docker (kind)", "/docker/" + idA + "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + uid_ + ".slice/cri-containerd-" + idB + ".scope",
		event.Cgroup{Container: idB, Runtime: "containerd", PodUID: uid}},
	{"a node in Docker, cgroupfs", "/docker/" + idA + "/kubelet/kubepods/besteffort/pod" + uid + "/" + idB, event.Cgroup{Container: idB, PodUID: uid}},
	{"a pod and no container", "/kubepods/burstable/pod" + uid, event.Cgroup{PodUID: uid}},
	{"a pod and no container, of a node in Docker", "/docker/" + idA + "/kubelet/kubepods/burstable/pod" + uid, event.Cgroup{PodUID: uid}},
	{"a service", "/system.slice/containerd.service", event.Cgroup{}},
	{"the root", "/", event.Cgroup{}},
	{"a pod of something else", "/pod" + uid + "/x", event.Cgroup{}},
	{"a slice of something else", "/my-pod" + uid_ + ".slice", event.Cgroup{}},
	{"too short for an id", "/docker/" + idA[1:], event.Cgroup{}},
	{"capitals", "/docker/" + strings.ToUpper(idA), event.Cgroup{}},
	{"no uid", "/kubepods/pod" + uid[1:] + "/x", event.Cgroup{}},
}

func TestParseCgroup(t *testing.T) {
	for _, l := range layouts {
		l.want.Path = l.path
		if diff := cmp.Diff(l.want, ParseCgroup(l.path)); diff != "" {
			t.Errorf("%s: %s (-want +got):\n%s", l.name, l.path, diff)
		}
	}
}

// FuzzParseCgroup: whatever a control group is called, an id and a uid stand in its
// path as they are told.
func FuzzParseCgroup(f *testing.F) {
	for _, l := range layouts {
		f.Add(l.path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		in := ParseCgroup(path)
		if in.Container != "" && (len(in.Container) != 64 || !strings.Contains(path, in.Container)) {
			t.Errorf("%q: container %q", path, in.Container)
		}
		if uid := in.PodUID; uid != "" && !strings.Contains(path, "pod"+uid) && !strings.Contains(path, "pod"+strings.ReplaceAll(uid, "-", "_")) {
			t.Errorf("%q: pod %q", path, uid)
		}
		if in.Container == "" && in.Runtime != "" {
			t.Errorf("%q: a runtime, %q, and no container", path, in.Runtime)
		}
	})
}

func BenchmarkParseCgroup(b *testing.B) {
	for b.Loop() {
		ParseCgroup(layouts[0].path)
	}
}
