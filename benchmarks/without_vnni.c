/* Hides VNNI from a process, so that its libraries take the kernels of x86 processors that lack it, at full speed.

       cc -O2 -shared -fPIC -o without_vnni.so without_vnni.c
       LD_PRELOAD=./without_vnni.so infoq-onnx evaluate …          (WITHOUT_AVX512=1 hides AVX-512 as well)

   Linux lets a process have every CPUID instruction fault (arch_prctl, ARCH_SET_CPUID). The handler executes it, clears
   the bits of what is to be hidden, and goes on behind it. Where the processor or the kernel does not offer that, the
   process ends at once with exit code 77. */

#define _GNU_SOURCE
#include <asm/prctl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define UNSUPPORTED 77
#define BIT(n) (1u << (n))

/* of leaf 7, subleaf 0 */
#define AVX512_VNNI BIT(11)                                      /* ecx */
#define AMX (BIT(22) | BIT(24) | BIT(25))                        /* edx */
#define AVX512 (BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)) /* ebx */
/* of leaf 7, subleaf 1 */
#define AVX_VNNI BIT(4)                                          /* eax */
#define AVX_VNNI_INT8 (BIT(4) | BIT(10))                         /* edx, INT16 as well */

static int without_avx512;

static long set_faulting(int on) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, on ? 0 : 1); }

static void on_fault(int signal_number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)registers[REG_RIP];
    (void)info;
    if (code[0] != 0x0F || code[1] != 0xA2) {
        /* a fault of another kind: run into it again, unhandled */
        signal(signal_number, SIG_DFL);
        return;
    }
    uint32_t eax = registers[REG_RAX], ebx, ecx = registers[REG_RCX], edx;
    const uint32_t leaf = eax, subleaf = ecx;
    set_faulting(0);
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    set_faulting(1);
    if (leaf == 7 && subleaf == 0) {
        ecx &= ~AVX512_VNNI;
        edx &= ~AMX;
        if (without_avx512) ebx &= ~AVX512;
    }
    if (leaf == 7 && subleaf == 1) {
        eax &= ~AVX_VNNI;
        edx &= ~AVX_VNNI_INT8;
    }
    registers[REG_RAX] = eax;
    registers[REG_RBX] = ebx;
    registers[REG_RCX] = ecx;
    registers[REG_RDX] = edx;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    without_avx512 = getenv("WITHOUT_AVX512") != NULL;
    if (sigaction(SIGSEGV, &action, NULL) != 0 || set_faulting(1) != 0) {
        fprintf(stderr, "CPUID cannot be intercepted here\n");
        _exit(UNSUPPORTED);
    }
}
